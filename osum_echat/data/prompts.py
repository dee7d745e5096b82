"""The words that ask for an understanding task: a pool for each task tag, one drawn a time."""

import random
from pathlib import Path

from osum_echat.errors import ConfigError
from osum_echat.settings import read_mapping

LANGUAGES = ("all", "english", "chinese")


class Prompts:
    """Pools of prompts by task tag."""

    def __init__(self, pools: dict[str, tuple[str, ...]]) -> None:
        self.pools = pools

    @classmethod
    def from_file(cls, path: Path, language: str = "all") -> "Prompts":
        """Read `tag: [prompt, ...]` or `tag: {english: [...], chinese: [...]}`.

        A plain list belongs to every language. Raises ConfigError for anything else.
        """
        if language not in LANGUAGES:
            raise ConfigError(f"prompt_language: {language!r} is not one of {', '.join(LANGUAGES)}")
        raw = read_mapping(path, advice="see prepare.prompts")
        pools = {}
        for tag, entry in raw.items():
            pool = _pool(entry, language)
            if not pool or not all(isinstance(prompt, str) and prompt for prompt in pool):
                raise ConfigError(f"prompts {path}: {tag} has no list of prompts for {language!r}")
            pools[str(tag)] = tuple(pool)
        return cls(pools)

    def draw(self, tag: str, rng: random.Random) -> str | None:
        """One prompt of the task at random; None for a task without prompts."""
        pool = self.pools.get(tag)
        return rng.choice(pool) if pool else None

    def first(self, tag: str) -> str | None:
        """The task's first prompt, for those who do not want chance."""
        pool = self.pools.get(tag)
        return pool[0] if pool else None


def _pool(entry: object, language: str) -> list[str]:
    if isinstance(entry, list):
        return entry
    if not isinstance(entry, dict):
        return []
    kinds = [language] if language != "all" else [one for one in LANGUAGES if one in entry]
    return [prompt for kind in kinds for prompt in (entry.get(kind) or [])]
