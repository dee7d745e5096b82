"""Public speech corpora, each in the layout that its makers publish, as raw lists."""
