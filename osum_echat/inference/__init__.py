"""From a request to a reply: the model loaded, asked, and what it says read."""
