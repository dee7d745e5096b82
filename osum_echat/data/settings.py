"""How records become rows: the settings, with the published values as defaults."""

from dataclasses import dataclass, field
from typing import ClassVar

from osum_echat.data.augment import AugmentSettings
from osum_echat.errors import ConfigError
from osum_echat.thinking import template_named

THINKING = ("label", "natural", "both")
OTHER_ASSISTANTS = (
    "MOSS Assistant", "MOSS助手", "QWEN", "Qwen助手", "ChatGPT", "chatgpt", "ChatBot", "chatbot",
    "Chat Bot", "chat bot", "AI Agent", "AI agent", "virtual assistant", "VirtualAssistant李娜",
    "小智机器人", "小智助手", "小智AI助手", "小智Bot", "Assistant小智", "AI小智", "小红小助手",
    "小刚AI", "晓明助手", "小明助手", "MOSS小助手", "ChatBot小明", "阿强Bot", "阿丽小助手",
    "王磊AI助手", "李娜AI", "张伟助手", "赵敏Bot", "刘洋AI小助手", "陈晨智能助手", "大型语言模型",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PrepareSettings:
    """How records become rows; the published values are the defaults."""

    thinking: str = "label"  # label | natural | both (a draw at each visit)
    template: str = "chinese"  # words of a label thought: chinese | english
    prompts: str | None = "conf/prompt_config.yaml"  # prompts of understanding tasks; null = none
    prompt_language: str = "all"  # all | english | chinese
    labels_only: float = 0.5  # chance that a task of words and labels asks for the labels alone
    audio_as_text: float = 0.0  # share of rows with words and labels in place of sound: a small
    # LLM's pre-training, and what keeps it reading the adapter's steps later
    audio_as_text_noise: float = 0.1  # chance of a stand-in token to be lost or mistaken
    audio_as_text_gaps: float = 1.0  # how long stand-ins pause, against the adapter's steps
    speech_answers: bool = True  # false: spoken answers are cut off after their text
    speech_per_text: float = 0.8  # least speech tokens for a text token of the answer; 0 = any
    min_frames: int = 20  # of the user's own audio, 10 ms each
    max_frames: int = 20_000
    max_tokens: int = 2000  # longer rows are dropped
    time_masks: int = 0  # stretches of a clip set to zero, of up to 50 frames (upstream: 2)
    band_masks: int = 0  # bands of a clip set to zero, of up to 10 mel bins (upstream: 2)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    other_names: tuple[str, ...] = OTHER_ASSISTANTS  # replies that name one of these are dropped
    ctc_targets: bool = False  # rows tell labels and words of their clips, for engine.ctc_weight
    cache_mb: int = 0  # features kept in memory in half precision; 0 = none, full precision
    RENAMED: ClassVar[dict[str, str]] = {"name_heard": "ctc_targets"}

    def __post_init__(self) -> None:
        if self.thinking not in THINKING:
            known = ", ".join(THINKING)
            raise ConfigError(f"prepare.thinking: {self.thinking!r} is not one of {known}")
        template_named(self.template)
        for name in ("labels_only", "audio_as_text", "audio_as_text_noise"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"prepare.{name}: {getattr(self, name)}, need 0 to 1")
        if self.audio_as_text_gaps < 0:
            raise ConfigError(f"prepare.audio_as_text_gaps: {self.audio_as_text_gaps}, need 0 up")
