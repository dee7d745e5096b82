"""The page: what stands where, what a chat shows, and what happens when something is pressed."""

import json
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from osum_echat.errors import InputError, OsumError
from osum_echat.paths import MODELS
from osum_echat.serving import chat, strings
from osum_echat.serving.chat import Answer, ChatService, Form, Session, Turn
from osum_echat.serving.feedback import LONGEST_NOTE
from osum_echat.serving.session import FIRST_TASK, HEARABLE, MEGABYTE, MENU, OWN_VOICE

TITLE = "OSUM-EChat"
PLAYER_JS = "watch('value', () => window.osum.take(props.value));"
HUSH_JS = "() => { window.osum.hush(); }"
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
RECORDED: dict[str, Any] = {"sources": ["upload", "microphone"], "type": "filepath", "buttons": []}
AT_ONCE = {**PRIVATE, "queue": False}       # these wait for no answer under way
# Components by name, whose label is the word of that name; first those of the form, in its order.
FORM = ("task", "listen_for", "models", "clip", "text", "voice", "voice_clip", "remembers", "hear",
        "greedy", "seed")  # fmt: skip
LABELLED = (*(name for name in FORM if name != "text"), "language", "samples", "more", "save")
BUTTONS = ("send", "stop", "reset")
THUMBS = {"correct": "Like", "incorrect": "Dislike"}     # verdict -> what gr.Chatbot calls it
SAVED = ("model", "kind", "state", "heard", "thought", "text", "raw", "problem", "timings")
Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Components:
    """All by name, and a chat for each model."""

    named: dict[str, Any]
    chats: tuple[Any, ...]

    def updates(self, by_name: dict[str, Any]) -> dict[Any, Any]:
        """What a handler gives back: the new state of each component that it names."""
        return {self.named[name]: update for name, update in by_name.items()}


def free_port(host: str, ports: Iterable[int]) -> int:
    """The first of the ports that nobody listens at. Raises InputError naming them."""
    tried = list(ports)
    for port in tried:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind((host, port))
            except (OSError, OverflowError):
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


def build(service: ChatService, samples: Sequence[Path], kept_s: int) -> Any:
    """The whole page as Gradio blocks. samples: to try; kept_s: how long uploads stay."""
    import gradio

    with gradio.Blocks(
        title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(kept_s, kept_s)
    ) as page:  # fmt: skip
        parts = _place(service, samples)
        _answering(service, parts)
        _judging(service, parts)
        _choosing(page, service, parts)
    return page


def _place(service: ChatService, samples: Sequence[Path]) -> Components:
    """Put every component where it stands, in English."""
    import gradio

    tell, named = strings.words(strings.FIRST), dict[str, Any]()

    def add(kind: Any, name: str, *given: Any, **options: Any) -> Any:
        word = {"value" if name in BUTTONS else "label": tell[name]}
        named[name] = kind(*given, **word, elem_id=name, **options)
        return named[name]

    with gradio.Row(elem_id="head"):
        named["heading"] = gradio.HTML(_heading(strings.FIRST))
        add(gradio.Radio, "language", [(name, code) for code, name in strings.LANGUAGES.items()],
            value=strings.FIRST, show_label=False, container=False, scale=0)  # fmt: skip
    with gradio.Row():
        with gradio.Column(scale=7, min_width=320):
            with gradio.Row(elem_id="chats"):
                chats = tuple(_chatbot(number) for number in range(len(service.models)))
            with gradio.Row(elem_id="after"):
                named["note"] = gradio.Textbox(
                    placeholder=tell["note"], max_lines=1, container=False, elem_id="note",
                    max_length=LONGEST_NOTE, scale=4,
                )  # fmt: skip
                add(gradio.DownloadButton, "save", visible=False, size="sm", scale=1, min_width=120)
            named["sound"] = gradio.HTML(chat.player("", (), ()), html_template="<i></i>",
                                         js_on_load=PLAYER_JS, visible="hidden")  # fmt: skip
            named["problem"] = gradio.HTML("", elem_id="problem", visible=False)
            clip = add(gradio.Audio, "clip", **RECORDED)
            named["text"] = gradio.Textbox(visible=False, lines=2, elem_id="text",
                                           max_length=service.limits.text_characters)  # fmt: skip
            with gradio.Row():
                add(gradio.Button, "reset", min_width=90)
                add(gradio.Button, "stop", variant="stop", min_width=90)
                add(gradio.Button, "send", variant="primary", scale=2, min_width=120)
            tried = gradio.Examples(
                [[str(path)] for path in samples] or [[None]], clip, label=tell["samples"],
                example_labels=[path.stem for path in samples] or [""], visible=bool(samples),
                cache_examples=False, api_visibility="private",
            )  # fmt: skip
            named["samples"] = tried.dataset
        with gradio.Column(scale=3, min_width=280):
            _settings(service, add)
            limits = _limits(service, strings.FIRST)
            named["limits"] = gradio.Markdown(limits, elem_id="limits")
    return Components(named, chats)


def _chatbot(number: int) -> Any:
    import gradio

    return gradio.Chatbot(
        show_label=False, visible=number == 0, buttons=[], latex_delimiters=[], height="60vh",
        placeholder=strings.word("empty", strings.FIRST), elem_classes="osum-chat", min_width=300,
    )  # fmt: skip


def _settings(service: ChatService, add: Callable[..., Any]) -> None:
    """The right-hand column. add: of a kind, under a name."""
    import gradio

    offered = _choices(service, strings.FIRST)
    add(gradio.Dropdown, "task", offered["task"], value=FIRST_TASK, filterable=False)
    add(gradio.CheckboxGroup, "listen_for", offered["listen_for"], value=list(HEARABLE[:-1]),
        visible=False)  # fmt: skip
    add(gradio.CheckboxGroup, "models", offered["models"], value=[0],
        visible=len(service.models) > 1)  # fmt: skip
    add(gradio.Dropdown, "voice", offered["voice"], value=OWN_VOICE, filterable=False)
    with add(gradio.Accordion, "more", open=False):
        add(gradio.Audio, "voice_clip", **RECORDED)
        add(gradio.Checkbox, "remembers", True)
        add(gradio.Checkbox, "hear", False)
        add(gradio.Checkbox, "greedy", False)
        add(gradio.Number, "seed", 0, precision=0, minimum=0)


def _answering(service: ChatService, parts: Components) -> None:
    """Send, Stop, New conversation."""
    import gradio

    named, updates = parts.named, parts.updates
    quiet = gradio.update(value="", visible=False)

    def send(request: gradio.Request, code: str, *values: Any) -> Iterator[dict[Any, Any]]:
        session, form = service.session(str(request.session_hash)), _form(*values)
        yield updates({"problem": quiet})
        try:
            emptied = {"clip": None} if MENU[form.task].task.is_dialogue else {}
            for heard in service.answer(session, form):
                if not session.turns:       # a new chat was begun meanwhile
                    return
                shown = {parts.chats[number]: gradio.update(**_chat(session, number, code))
                         for number in session.turns[-1].answers}  # fmt: skip
                yield {**shown, **updates({"sound": heard, **emptied})}
                emptied = {}                # made free for the next turn once
            path = _saved(service, session)
            yield updates({"save": gradio.update(value=path, visible=True)})
        except OsumError as error:
            yield updates({"problem": _notice(strings.problem(error, code))})

    def stop(request: gradio.Request) -> None:
        service.session(str(request.session_hash)).interrupt()

    def reset(request: gradio.Request) -> dict[Any, Any]:
        service.session(str(request.session_hash)).reset()
        emptied = dict.fromkeys(parts.chats, gradio.update(value=[], feedback_value=[]))
        hidden = gradio.update(visible=False)
        return emptied | updates({"problem": quiet, "clip": None, "save": hidden, "text": ""})

    gradio.on(
        [named["send"].click, named["text"].submit], send,
        [named["language"], *(named[name] for name in FORM)],
        [*parts.chats, *(named[name] for name in ("sound", "problem", "clip", "save"))],
        trigger_mode="once", **PRIVATE,
    )  # fmt: skip
    named["stop"].click(stop, **AT_ONCE)
    named["reset"].click(
        reset, None, [*parts.chats, *(named[name] for name in ("problem", "clip", "save", "text"))],
        **AT_ONCE,
    )  # fmt: skip
    for name in ("stop", "reset"):
        named[name].click(None, js=HUSH_JS, **PRIVATE)


def _judging(service: ChatService, parts: Components) -> None:
    """The thumbs below each reply: correct, incorrect; what is in the note goes with them."""
    import gradio

    def judge(
        request: gradio.Request, data: gradio.LikeData, code: str, note: str, number: int
    ) -> dict[Any, Any]:
        session = service.session(str(request.session_hash))
        shown = _messages(session, number, code)
        owners: dict[Any, Answer | None] = {at: one for at, (one, _) in enumerate(shown)}
        try:
            verdict = "correct" if data.liked else "incorrect"
            service.judge(owners.get(data.index), verdict, note or "")
        except OsumError as error:
            return parts.updates({"problem": _notice(strings.problem(error, code))})
        gradio.Info(strings.word("saved", code))
        return parts.updates({"note": ""})

    told = [parts.named["note"], parts.named["problem"]]
    for number, one in enumerate(parts.chats):
        given = [parts.named["language"], parts.named["note"], gradio.State(number)]
        one.like(judge, given, told, **PRIVATE)        # queued: gr.Info needs it


def _choosing(page: Any, service: ChatService, parts: Components) -> None:
    """The language, from the browser's own at first; what each task needs; coming and going."""
    import gradio

    named = parts.named
    language, task, models = named["language"], named["task"], named["models"]

    def translate(request: gradio.Request, code: str, task: str) -> dict[Any, Any]:
        session = service.session(str(request.session_hash))
        empty = strings.word("empty", code)
        chats = {one: gradio.update(**_chat(session, number, code), placeholder=empty)
                 for number, one in enumerate(parts.chats)}  # fmt: skip
        return chats | parts.updates(_translated(service, code, task))

    def greet(request: gradio.Request, task: str) -> dict[Any, Any]:
        code = strings.preferred(request.headers.get("accept-language", ""))
        return translate(request, code, task) | {language: code}

    def fit(code: str, task: str) -> dict[Any, Any]:
        return parts.updates(_fitting(task, code))

    def leave(request: gradio.Request) -> None:
        service.leave(str(request.session_hash))

    def show(ticked: list[int]) -> list[Any]:
        return [gradio.update(visible=number in ticked) for number in range(len(parts.chats))]

    words = _translated(service, strings.FIRST, FIRST_TASK)
    told = [*parts.chats, *(named[name] for name in words)]
    needed = [named[name] for name in _fitting(FIRST_TASK, strings.FIRST)]
    language.input(translate, [language, task], told, **AT_ONCE)
    task.change(fit, [language, task], needed, **AT_ONCE)
    models.change(show, [models], list(parts.chats), **AT_ONCE)
    page.load(greet, [task], told, **AT_ONCE)
    page.unload(leave)


def _form(task: str, ticked: Sequence[str], models: Sequence[int], clip: str | None, text: str,
          voice: str, voice_clip: str | None, remembers: bool, hear: bool, greedy: bool,
          seed: float | None) -> Form:  # fmt: skip
    """The form as it was sent."""
    return Form(
        task, tuple(ticked), tuple(models), Path(clip) if clip else None, text or "", voice,
        Path(voice_clip) if voice_clip else None, remembers, hear, greedy, int(seed or 0),
    )  # fmt: skip


def _fitting(name: str, code: str) -> dict[str, Any]:
    """Show what the task needs: recording, text, labels, voice."""
    import gradio

    item = MENU[name]
    prompt = "free" if item.takes_prompt else "tts" if item.task.speaks else "t2t"
    return {
        "clip": gradio.update(visible=item.task.hears),
        "text": gradio.update(visible=item.reads, label=strings.word(f"text_{prompt}", code),
                              placeholder=strings.word(f"hint_{prompt}", code)),
        "listen_for": gradio.update(visible=item.picks_labels),
        "voice": gradio.update(visible=item.task.speaks),
    }  # fmt: skip


def _translated(service: ChatService, code: str, task: str) -> dict[str, Any]:
    """An update for each component that holds words."""
    import gradio

    tell, offered = strings.words(code), _choices(service, code)
    chosen: dict[str, Any] = {name: {"choices": choices} for name, choices in offered.items()}
    return {
        "heading": _heading(code), "limits": _limits(service, code),
        "note": gradio.update(placeholder=tell["note"]), "text": _fitting(task, code)["text"],
        **{name: gradio.update(label=tell[name], **chosen.get(name, {})) for name in LABELLED},
        **{name: gradio.update(value=tell[name]) for name in BUTTONS},
    }  # fmt: skip


def _chat(session: Session, number: int, code: str) -> dict[str, Any]:
    """The messages of one model's chat, and the thumbs that were pressed."""
    shown = _messages(session, number, code)
    thumbs = [THUMBS.get(answer.verdict) for answer, _ in shown if answer is not None]
    return {"value": [message for _, message in shown], "feedback_value": thumbs}


def _messages(session: Session, number: int, code: str) -> list[tuple[Answer | None, Message]]:
    """One model's chat: each message, and the answer that it belongs to."""
    tell = strings.words(code)
    shown: list[tuple[Answer | None, Message]] = []
    for turn in list(session.turns):
        if number in turn.answers:
            answer = turn.answers[number]
            shown += [(None, one) for one in _asked(turn, tell)]
            shown += [(answer, one) for one in _answered(turn, answer, tell)]
    return shown


def _asked(turn: Turn, tell: dict[str, str]) -> Iterator[Message]:
    """A question. What comes from people or models enters as text, never as HTML."""
    item = f"{tell['you']} · {tell.get('task_' + turn.task, turn.task)}"
    name = f"<br>{escape(turn.name)} · {turn.seconds:.1f} s" if turn.seconds else ""
    yield _says("user", f'<div class="osum-who">{item}{name}</div>{_text(turn.text)}')
    if turn.clip:
        yield {"role": "user", "content": {"path": turn.clip}}


def _answered(turn: Turn, answer: Answer, tell: dict[str, str]) -> Iterator[Message]:
    """An answer: the thought, folded; words and labels; sound; pictures and timings, folded."""
    is_busy = answer.state == chat.WORKING
    who = " · ".join([answer.model, *([tell[answer.kind]] if answer.kind else [])])
    parts = [f'<div class="osum-who">{escape(who)}</div>']
    if answer.heard:
        heard = f"<b>{tell['heard']}</b> <q>{escape(answer.heard)}</q>"
        parts.append(f'<div class="osum-heard">{heard}</div>')
    if answer.labels:
        chips = "".join(
            f'<span class="osum-chip osum-{name}"><small>{tell.get(name, name)}</small> '
            f"{escape(label)}</span>" for name, label in answer.labels
        )  # fmt: skip
        parts.append(f'<div class="osum-chips">{chips}</div>')
    parts.append(_text(answer.text))
    if answer.problem:
        parts.append(f'<div class="osum-problem">{escape(answer.problem)}</div>')
    is_empty = not (answer.text or answer.heard or answer.labels or answer.problem)
    state = tell["working"] if is_busy else tell.get(answer.state) or (
        tell["silent"] if is_empty else "")  # fmt: skip
    parts.append(f'<div class="osum-state">{state}</div>' if state else "")
    yield _says("assistant", f'<div class="osum-reply osum-{answer.state}">{"".join(parts)}</div>')
    if answer.thought:
        title = tell["thinking"] if is_busy and not answer.text else tell["thought"]
        yield _folded(title, _text(answer.thought))
    if answer.wav:
        yield {"role": "assistant", "content": {"path": answer.wav}}
    if answer.timings and answer.state != chat.FAILED:
        yield _folded(tell["details"], _details(turn, answer, tell))


def _details(turn: Turn, answer: Answer, tell: dict[str, str]) -> str:
    pictures = "".join(
        f'<div class="osum-who">{tell["spectrogram"]}: {tell[name]}</div>'
        f'<img class="osum-mel" src="{mel}" alt="{tell["spectrogram"]}">'
        for name, mel in (("question_sound", turn.mel), ("reply_sound", answer.mel)) if mel
    )  # fmt: skip
    times = " · ".join(f"{tell.get(name, name)} <b>{seconds:.2f} s</b>"
                       for name, seconds in answer.timings.items())  # fmt: skip
    raw = f'<div>{tell["raw"]}: <code>{escape(answer.raw)}</code></div>' if answer.raw else ""
    return f'{pictures}<div class="osum-times">{times}</div>{raw}'


def _says(role: str, inside: str) -> Message:
    return {"role": role, "content": f"<div>{inside}</div>"}


def _folded(title: str, inside: str) -> Message:
    return {**_says("assistant", inside), "metadata": {"title": title, "status": "done"}}


def _text(text: str) -> str:
    """Words of people or of a model: one block of HTML, so that nothing in it is markdown."""
    lines = escape(text).replace("\n", "<br>")
    return f'<div class="osum-text">{lines}</div>' if text else ""


def _saved(service: ChatService, session: Session) -> str:
    """The conversation as a JSON file."""
    turns = [
        {"task": turn.task, "text": turn.text, "file": turn.name, "replies": [
            {name: getattr(answer, name) for name in SAVED} | {"labels": dict(answer.labels)}
            for answer in turn.answers.values()]}
        for turn in session.turns
    ]  # fmt: skip
    last = next(iter(session.turns[-1].answers.values()))
    path = service.folder / f"conversation_{last.key}.json"
    told = json.dumps(turns, ensure_ascii=False, indent=2)
    path.write_bytes(told.encode(errors="replace"))     # half a character that was typed, too
    return str(path)


def _notice(message: str) -> Any:
    import gradio

    text = escape(message)
    return gradio.update(value=f'<div class="osum-notice" role="alert">{text}</div>', visible=True)


def _heading(code: str) -> str:
    return f"<h1>{TITLE}</h1><p>{strings.word('subtitle', code)}</p>"


def _limits(service: ChatService, code: str) -> str:
    limits = service.limits
    told = strings.word("limits", code).format(
        seconds=limits.audio_s, megabytes=limits.audio_bytes / MEGABYTE
    )
    ours = MODELS.keys() & {model.name for model in service.models}
    return "\n\n".join([*(strings.word(f"about_{name}", code) for name in sorted(ours)), told])


def _choices(service: ChatService, code: str) -> dict[str, list[tuple[str, Any]]]:
    """What may be chosen, and how it is called."""
    own = strings.word("own_voice", code)
    return {
        "task": [(strings.word(f"task_{name}", code), name) for name in MENU],
        "listen_for": [(strings.word(name, code), name) for name in HEARABLE],
        "models": [(f"{model.name} · {strings.word(model.kind, code)}", number)
                   for number, model in enumerate(service.models)],
        "voice": [(Path(name).stem if name else own, name) for name in service.voices.names],
    }  # fmt: skip
