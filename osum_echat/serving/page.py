"""The page itself: what stands where, and what happens when something is pressed."""

import html
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osum_echat.errors import InputError, OsumError
from osum_echat.serving import menu, strings
from osum_echat.serving.lanes import OWN_VOICE
from osum_echat.serving.session import MEGABYTE
from osum_echat.serving.view import player
from osum_echat.serving.visit import Desk, Order, Visit

TITLE = "OSUM-EChat"
CONVERSATION_JS = "window.osum.conversation(element, props, watch, (name, data) => " \
                  "trigger('feedback', data));"  # fmt: skip
PLAYER_JS = "window.osum.player(props, watch);"
VERDICT_PARTS = ("key", "verdict", "note")
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
AT_ONCE = {**PRIVATE, "queue": False}       # these wait for no answer under way
HUSH_JS = "() => { window.osum.hush(); }"
# Components whose label is one word of the table, by the same name.
LABELLED = ("task", "clip", "listen_for", "models", "voice", "voice_clip", "remembers", "hear",
            "greedy", "seed", "language", "samples")  # fmt: skip
BUTTONS = ("send", "stop", "reset")


@dataclass(frozen=True, slots=True)
class Parts:
    """The components, by name: `form` in the order of `_order`'s arguments."""

    named: dict[str, Any]
    form: tuple[Any, ...]


def free_port(host: str, ports: Iterable[int]) -> int:
    """The first of the ports that nobody listens at. Raises InputError naming them."""
    tried = list(ports)
    for port in tried:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind((host, port))
            except OSError:
                continue
            return port
    span = str(tried[0]) if len(tried) == 1 else f"{tried[0]} to {tried[-1]}"
    raise InputError(f"{host}: port {span} cannot be used; give another --port, or check --host")


def theme() -> Any:
    """Calm colours and the reader's own fonts: nothing is fetched from elsewhere."""
    import gradio

    fonts = ["system-ui", "-apple-system", "Segoe UI", "Noto Sans", "Noto Sans CJK SC",
             "PingFang SC", "Microsoft YaHei", "sans-serif"]  # fmt: skip
    return gradio.themes.Base(
        primary_hue="teal", secondary_hue="teal", neutral_hue="slate", radius_size="lg",
        font=fonts, font_mono=["ui-monospace", "Consolas", "DejaVu Sans Mono", "monospace"],
    ).set(
        body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400",
        button_primary_background_fill="*primary_700", block_label_text_color="*neutral_600",
        button_primary_background_fill_hover="*primary_800", block_border_width="1px",
        block_radius="14px", container_radius="14px", input_radius="10px",
        button_large_radius="12px",
    )  # fmt: skip


def build(desk: Desk, samples: Sequence[Path], kept_s: int) -> Any:
    """The whole page as Gradio blocks. samples: to try; kept_s: how long uploads stay."""
    import gradio

    with gradio.Blocks(
        title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(kept_s, kept_s)
    ) as page:  # fmt: skip
        parts = _place(desk, samples)
        _wire(page, desk, parts)
    return page


def _place(desk: Desk, samples: Sequence[Path]) -> Parts:
    """Put every component where it stands, in English."""
    import gradio

    tell = strings.words(strings.FIRST)
    with gradio.Row(elem_id="head"):
        heading = gradio.HTML(_heading(strings.FIRST))
        language = gradio.Radio(
            [(name, code) for code, name in strings.LANGUAGES.items()], value=strings.FIRST,
            show_label=False, container=False, elem_id="language", scale=0,
        )  # fmt: skip
    with gradio.Row():
        with gradio.Column(scale=7, min_width=320):
            chat = gradio.HTML(
                _chat(Visit(desk.limits), strings.FIRST), html_template="<div></div>",
                js_on_load=CONVERSATION_JS, elem_id="conversation", apply_default_css=False,
            )  # fmt: skip
            sound = gradio.HTML(player("", (), ()), html_template="<i></i>", js_on_load=PLAYER_JS,
                                visible="hidden")  # fmt: skip
            problem = gradio.HTML("", elem_id="problem", visible=False)
            clip = gradio.Audio(sources=["upload", "microphone"], type="filepath", buttons=[],
                                label=tell["clip"], elem_id="clip")  # fmt: skip
            text = gradio.Textbox(visible=False, lines=2, elem_id="text",
                                  max_length=desk.limits.text_characters)  # fmt: skip
            with gradio.Row():
                reset = gradio.Button(tell["reset"], elem_id="reset", min_width=90)
                stop = gradio.Button(tell["stop"], elem_id="stop", variant="stop", min_width=90)
                send = gradio.Button(tell["send"], elem_id="send", variant="primary", scale=2,
                                     min_width=120)  # fmt: skip
            tried = gradio.Examples(
                [[str(path)] for path in samples] or [[None]], clip, label=tell["samples"],
                example_labels=[path.stem for path in samples] or [""], visible=bool(samples),
                cache_examples=False, api_visibility="private",
            )  # fmt: skip
        with gradio.Column(scale=3, min_width=280):
            settings, form = _settings(desk, tell)
    form = (settings["task"], settings["listen_for"], settings["models"], clip, text, *form)
    named = {"heading": heading, "language": language, "chat": chat, "sound": sound, "clip": clip,
             "problem": problem, "text": text, "reset": reset, "stop": stop, "send": send,
             "samples": tried.dataset, **settings}  # fmt: skip
    return Parts(named, form)


def _settings(
    desk: Desk, tell: dict[str, str]
) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """The right-hand column: by name, and those of the form after task, labels and models."""
    import gradio

    language = strings.FIRST
    task = gradio.Dropdown(_tasks(language), value=menu.FIRST, label=tell["task"], elem_id="task",
                           filterable=False)  # fmt: skip
    listen_for = gradio.CheckboxGroup(
        _hearable(language), value=list(menu.HEARABLE[:-1]), label=tell["listen_for"],
        visible=False, elem_id="listen_for",
    )  # fmt: skip
    models = gradio.CheckboxGroup(
        _models(desk, language), value=[0], label=tell["models"], elem_id="models",
        visible=len(desk.lanes) > 1,
    )  # fmt: skip
    voice = gradio.Dropdown(_voices(desk, language), value=OWN_VOICE, label=tell["voice"],
                            elem_id="voice", filterable=False)  # fmt: skip
    with gradio.Accordion(tell["more"], open=False, elem_id="more") as more:
        voice_clip = gradio.Audio(sources=["upload", "microphone"], type="filepath", buttons=[],
                                  label=tell["voice_clip"], elem_id="voice_clip")  # fmt: skip
        remembers = gradio.Checkbox(True, label=tell["remembers"], elem_id="remembers")
        hear = gradio.Checkbox(False, label=tell["hear"])
        greedy = gradio.Checkbox(False, label=tell["greedy"])
        seed = gradio.Number(0, label=tell["seed"], precision=0, minimum=0)
    limits = gradio.Markdown(_limits(desk, language), elem_id="limits")
    named = {"task": task, "listen_for": listen_for, "models": models, "voice": voice,
             "voice_clip": voice_clip, "remembers": remembers, "hear": hear, "greedy": greedy,
             "seed": seed, "more": more, "limits": limits}  # fmt: skip
    return named, (voice, voice_clip, remembers, hear, greedy, seed)


def _wire(page: Any, desk: Desk, parts: Parts) -> None:
    """Say what happens when something is pressed."""
    _answering(desk, parts)
    _judging(desk, parts)
    _speaking_to(page, desk, parts)


def _answering(desk: Desk, parts: Parts) -> None:
    """Send, Stop, New conversation."""
    import gradio

    named = parts.named
    chat, problem, clip = named["chat"], named["problem"], named["clip"]

    def send(request: gradio.Request, code: str, *form: Any) -> Iterator[tuple[Any, ...]]:
        visit = desk.visit(str(request.session_hash))
        order = _order(*form)
        yield gradio.skip(), gradio.skip(), gradio.update(value="", visible=False), gradio.skip()
        try:
            clip = None if menu.is_dialogue(order.task) else gradio.skip()
            for heard in desk.answer(visit, order):
                yield _chat(visit, code), heard, gradio.skip(), clip
                clip = gradio.skip()    # made free for the next turn once
        except OsumError as error:
            notice = _notice(strings.problem(error, code))
            yield gradio.skip(), gradio.skip(), notice, gradio.skip()

    def stop(request: gradio.Request) -> None:
        desk.visit(str(request.session_hash)).interrupt()

    def reset(request: gradio.Request, code: str) -> tuple[Any, ...]:
        visit = desk.visit(str(request.session_hash))
        visit.reset()
        return _chat(visit, code), gradio.update(value="", visible=False), None, ""

    gradio.on(
        [named["send"].click, named["text"].submit], send, [named["language"], *parts.form],
        [chat, named["sound"], problem, clip], trigger_mode="once", **PRIVATE,
    )  # fmt: skip
    named["stop"].click(stop, **AT_ONCE)
    named["stop"].click(None, js=HUSH_JS, **PRIVATE)
    named["reset"].click(reset, [named["language"]], [chat, problem, clip, named["text"]],
                         **AT_ONCE)  # fmt: skip
    named["reset"].click(None, js=HUSH_JS, **PRIVATE)


def _judging(desk: Desk, parts: Parts) -> None:
    """Correct, Incorrect."""
    import gradio

    named = parts.named

    def judge(request: gradio.Request, event: gradio.EventData, code: str) -> tuple[Any, Any]:
        visit = desk.visit(str(request.session_hash))
        try:
            desk.judge(visit, *(str(event._data.get(name, "")) for name in VERDICT_PARTS))
        except OsumError as error:
            return gradio.skip(), _notice(strings.problem(error, code))
        return _chat(visit, code), gradio.skip()

    named["chat"].feedback(judge, [named["language"]], [named["chat"], named["problem"]],
                           **AT_ONCE)  # fmt: skip


def _speaking_to(page: Any, desk: Desk, parts: Parts) -> None:
    """The language, from the browser's own at first; what each task needs; coming and going."""
    import gradio

    named = parts.named
    language, task = named["language"], named["task"]

    def translate(request: gradio.Request, code: str, task: str) -> list[Any]:
        visit = desk.visit(str(request.session_hash))
        return [_chat(visit, code), *_translated(desk, code, task)]

    def greet(request: gradio.Request, task: str) -> list[Any]:
        code = strings.preferred(request.headers.get("accept-language", ""))
        return [code, *translate(request, code, task)]

    def fit(code: str, task: str) -> list[Any]:
        return _fitting(task, code)

    def leave(request: gradio.Request) -> None:
        desk.leave(str(request.session_hash))

    spoken = [named["chat"], *(named[name] for name in _TRANSLATED)]
    needed = [named[name] for name in ("clip", "text", "listen_for", "voice")]
    language.input(translate, [language, task], spoken, **AT_ONCE)
    task.change(fit, [language, task], needed, **AT_ONCE)
    page.load(greet, [task], [language, *spoken], **AT_ONCE)
    page.unload(leave)


def _order(task: str, ticked: Sequence[str], lanes: Sequence[int], clip: str | None, text: str,
           voice: str, voice_clip: str | None, remembers: bool, hear: bool, greedy: bool,
           seed: float | None) -> Order:  # fmt: skip
    """The form as it was sent."""
    return Order(
        task, tuple(ticked), tuple(lanes), Path(clip) if clip else None, text or "", voice,
        Path(voice_clip) if voice_clip else None, remembers, hear, greedy, int(seed or 0),
    )  # fmt: skip


def _fitting(name: str, code: str) -> list[Any]:
    """Show what the task needs: recording, text, labels, voice."""
    import gradio

    choice = menu.MENU[name]
    prompt = "free" if choice.takes_prompt else "tts" if choice.speaks else "t2t"
    return [
        gradio.update(visible=choice.hears),
        gradio.update(visible=choice.reads, label=strings.word(f"text_{prompt}", code),
                      placeholder=strings.word(f"hint_{prompt}", code)),
        gradio.update(visible=choice.picks_labels),
        gradio.update(visible=choice.speaks),
    ]  # fmt: skip


_TRANSLATED = ("heading", *LABELLED, *BUTTONS, "more", "limits", "text")


def _translated(desk: Desk, code: str, task: str) -> list[Any]:
    """An update for each of _TRANSLATED."""
    import gradio

    tell = strings.words(code)
    choices = {"task": _tasks(code), "listen_for": _hearable(code), "models": _models(desk, code),
               "voice": _voices(desk, code)}  # fmt: skip
    updates: dict[str, dict[str, Any]] = {name: {"label": tell[name]} for name in LABELLED}
    for name, offered in choices.items():
        updates[name]["choices"] = offered
    labelled = [gradio.update(**updates[name]) for name in LABELLED]
    pressed = [gradio.update(value=tell[name]) for name in BUTTONS]
    return [
        _heading(code), *labelled, *pressed, gradio.update(label=tell["more"]),
        _limits(desk, code), _fitting(task, code)[1],
    ]  # fmt: skip


def _chat(visit: Visit, code: str) -> Any:
    """What page.js draws."""
    return {"words": strings.words(code), "turns": visit.shown(), "given": visit.given}


def _notice(message: str) -> Any:
    import gradio

    text = html.escape(message)
    return gradio.update(value=f'<div class="osum-notice" role="alert">{text}</div>', visible=True)


def _heading(code: str) -> str:
    return f"<h1>{TITLE}</h1><p>{strings.word('subtitle', code)}</p>"


def _limits(desk: Desk, code: str) -> str:
    limits = desk.limits
    return strings.word("limits", code).format(
        seconds=limits.audio_s, megabytes=limits.audio_bytes / MEGABYTE
    )


def _tasks(code: str) -> list[tuple[str, str]]:
    return [(strings.word(f"task_{name}", code), name) for name in menu.MENU]


def _hearable(code: str) -> list[tuple[str, str]]:
    return [(strings.word(name, code), name) for name in menu.HEARABLE]


def _models(desk: Desk, code: str) -> list[tuple[str, int]]:
    return [
        (f"{lane.model} · {strings.word(lane.manner, code)}", number)
        for number, lane in enumerate(desk.lanes)
    ]


def _voices(desk: Desk, code: str) -> list[tuple[str, str]]:
    own = strings.word("own_voice", code)
    return [(Path(name).stem if name else own, name) for name in desk.voices.names]
