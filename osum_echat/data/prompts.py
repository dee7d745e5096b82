"""The words that ask for an understanding task: a pool for each task tag, one drawn a time."""

import random
from pathlib import Path

import yaml

from osum_echat.errors import ConfigError

LANGUAGES = ("all", "english", "chinese")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times faster


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
        try:
            raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
        except OSError as error:
            raise ConfigError(f"prompts {path}: {error.strerror}; see prepare.prompts") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"prompts {path}: not YAML: {error}") from error
        if not isinstance(raw, dict):
            raise ConfigError(f"prompts {path}: a mapping of task tags to prompts is needed")
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
