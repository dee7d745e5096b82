/* The conversation and its sound in the browser. Words of the model enter as text, never as HTML.

   conversation(...) draws the turns that the server shows; what is drawn already is only changed, so
   that open folds and running players stay as they are.
   player(...) plays pieces of sound as they come, without a gap, one reply after the other, and at a
   reply's end hands the whole as a wav to its card. */
(() => {
  const sounds = new Map();          // reply key -> {rate, chunks, scheduled, ended, url}
  let run = null, taken = 0;         // pieces of this run that have been taken
  let line = [], muted = false;      // replies of the run, in the order in which they speak
  let context = null, playhead = 0, sources = [];
  let redraw = () => {};

  const make = (tag, name, ...inside) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    element.append(...inside.filter((part) => part !== null && part !== undefined));
    return element;
  };
  const tell = (element, text) => { if (element.textContent !== text) element.textContent = text; };
  const show = (element, wanted) => { element.hidden = !wanted; };
  const once = (element, value, draw) => {     // draw again only what is new
    const mark = JSON.stringify(value);
    if (element.drawn !== mark) { element.drawn = mark; element.replaceChildren(...draw()); }
  };

  // ---- sound -------------------------------------------------------------------------------------
  const samplesOf = (base64) => {
    const text = atob(base64), bytes = new Uint8Array(text.length);
    for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
    return new Int16Array(bytes.buffer);
  };
  const schedule = (chunk, rate) => {
    if (muted || !chunk.length) return;
    context = context || new AudioContext();
    if (context.state === "suspended") context.resume();
    const buffer = context.createBuffer(1, chunk.length, rate), wave = buffer.getChannelData(0);
    for (let at = 0; at < chunk.length; at++) wave[at] = chunk[at] / 32768;
    const source = context.createBufferSource();
    source.buffer = buffer;
    source.connect(context.destination);
    playhead = Math.max(playhead, context.currentTime + 0.08);
    source.start(playhead);
    playhead += buffer.duration;
    sources.push(source);
  };
  const pump = () => {
    for (const key of line) {
      const sound = sounds.get(key);
      while (sound.scheduled < sound.chunks.length) schedule(sound.chunks[sound.scheduled++], sound.rate);
      if (!sound.ended) return;
    }
  };
  const hush = () => {
    muted = true;
    for (const source of sources) { try { source.stop(); } catch (error) { /* had not begun */ } }
    sources = [];
    playhead = 0;
    document.querySelectorAll(".osum audio").forEach((one) => one.pause());
  };
  const wav = (sound) => {
    const count = sound.chunks.reduce((sum, chunk) => sum + chunk.length, 0);
    const head = new DataView(new ArrayBuffer(44));
    const write = (at, text) => [...text].forEach((c, i) => head.setUint8(at + i, c.charCodeAt(0)));
    write(0, "RIFF"); head.setUint32(4, 36 + 2 * count, true); write(8, "WAVEfmt ");
    head.setUint32(16, 16, true); head.setUint16(20, 1, true); head.setUint16(22, 1, true);
    head.setUint32(24, sound.rate, true); head.setUint32(28, 2 * sound.rate, true);
    head.setUint16(32, 2, true); head.setUint16(34, 16, true);
    write(36, "data"); head.setUint32(40, 2 * count, true);
    return new Blob([head, ...sound.chunks], { type: "audio/wav" });
  };
  const hear = (value) => {
    if (!value || !value.run) return;
    if (value.run !== run) { hush(); run = value.run; taken = 0; line = []; muted = false; }
    for (; taken < value.pieces.length; taken++) {
      const { reply, rate, pcm } = value.pieces[taken];
      if (!sounds.has(reply)) {
        sounds.set(reply, { rate, chunks: [], scheduled: 0, ended: false, url: null });
        line.push(reply);
      }
      sounds.get(reply).chunks.push(samplesOf(pcm));
    }
    for (const key of value.ended) {
      const sound = sounds.get(key);
      if (sound && !sound.ended) { sound.ended = true; sound.url = URL.createObjectURL(wav(sound)); }
    }
    pump();
    redraw();
  };

  // ---- pictures ----------------------------------------------------------------------------------
  const waveform = (bars) => {
    const space = "http://www.w3.org/2000/svg", picture = document.createElementNS(space, "svg");
    picture.setAttribute("viewBox", `0 0 ${bars.length * 3} 40`);
    picture.setAttribute("preserveAspectRatio", "none");
    picture.setAttribute("class", "osum-wave");
    bars.forEach((height, at) => {
      const bar = document.createElementNS(space, "rect"), tall = Math.max(1.5, height * 38);
      for (const [name, value] of [["x", at * 3], ["y", 20 - tall / 2], ["width", 2], ["height", tall], ["rx", 1]])
        bar.setAttribute(name, value);
      picture.append(bar);
    });
    return picture;
  };
  const picture = (words, title, bars, mel) => {
    const parts = [make("figcaption", "", title), waveform(bars)];
    if (mel) {
      const image = make("img", "osum-mel");
      image.src = mel;
      image.alt = `${words.spectrogram}: ${title}`;
      parts.push(image);
    }
    return make("figure", "osum-picture", ...parts);
  };
  const lasting = (seconds) => (seconds ? `${seconds.toFixed(1)} s` : "");

  // ---- turns -------------------------------------------------------------------------------------
  const fileAt = (path) => {
    const { root = "", api_prefix = "/gradio_api" } = window.gradio_config || {};
    return `${root}${api_prefix}/file=${path.split("/").map(encodeURIComponent).join("/")}`;
  };
  const drawQuestion = (box, turn, words) => once(box, [turn.task, turn.text, turn.clip, words.you], () => {
    const parts = [make("div", "osum-who", `${words.you} · ${words["task_" + turn.task]}`)];
    if (turn.clip) {
      const player = make("audio");
      player.controls = true; player.preload = "metadata"; player.src = fileAt(turn.clip);
      const name = make("div", "osum-file", `${turn.name} · ${lasting(turn.seconds)}`);
      parts.push(waveform(turn.bars), name, player);
    }
    if (turn.text) parts.push(make("div", "osum-text", turn.text));
    return parts;
  });
  const skeleton = (trigger) => {
    const part = {
      who: make("div", "osum-who"), heard: make("div", "osum-heard"), chips: make("div", "osum-chips"),
      fold: make("details", "osum-thought"), thoughtTitle: make("summary"), thought: make("div"),
      text: make("div", "osum-text"), problem: make("div", "osum-problem"), sound: make("div", "osum-sound"),
      more: make("details", "osum-more"), moreTitle: make("summary"), moreBody: make("div"),
      verdict: make("div", "osum-verdict"), state: make("div", "osum-state"),
    };
    part.fold.append(part.thoughtTitle, part.thought);
    part.more.append(part.moreTitle, part.moreBody);
    part.card = make("article", "osum-reply", part.who, part.fold, part.heard, part.chips, part.text, part.state,
      part.problem, part.sound, part.more, part.verdict);
    part.trigger = trigger;
    return part;
  };
  const drawSound = (part, reply, words) => {
    const sound = sounds.get(reply.key), url = sound && sound.url;
    once(part.sound, [url || null, words.download], () => {
      if (!url) return [];
      const player = make("audio"), save = make("a", "osum-save", words.download);
      player.controls = true; player.src = url;
      save.href = url; save.download = `reply_${reply.key}.wav`;
      return [player, save];
    });
    show(part.sound, url);
  };
  const drawMore = (part, reply, turn, words) => {
    tell(part.moreTitle, words.details);
    once(part.moreBody, [reply.bars.length, reply.timings, reply.raw, words.details], () => {
      const rows = [];
      if (turn.bars.length) rows.push(picture(words, `${words.question_sound} · ${lasting(turn.seconds)}`, turn.bars, turn.mel));
      if (reply.bars.length) rows.push(picture(words, `${words.reply_sound} · ${lasting(reply.seconds)}`, reply.bars, reply.mel));
      const times = make("dl", "osum-times");
      for (const [name, seconds] of reply.timings)
        times.append(make("div", "", make("dt", "", words[name] || name), make("dd", "", `${seconds.toFixed(2)} s`)));
      rows.push(times);
      if (reply.raw) rows.push(make("div", "osum-raw", make("span", "", words.raw), make("code", "", reply.raw)));
      return rows;
    });
    show(part.more, reply.timings.length);
  };
  const drawVerdict = (part, reply, words) => {
    once(part.verdict, [words.correct, part.given || null], () => {
      if (part.given) return [make("span", "osum-thanks", `${words[part.given]} · ${words.saved}`)];
      const note = make("input");
      note.placeholder = words.note; note.maxLength = 1000; note.setAttribute("aria-label", words.note);
      const button = (verdict) => {
        const one = make("button", `osum-${verdict}`, `${verdict === "correct" ? "✓" : "✗"} ${words[verdict]}`);
        one.type = "button";
        one.onclick = () => part.trigger("feedback", { key: reply.key, verdict, note: note.value });
        return one;
      };
      return [button("correct"), button("incorrect"), note];
    });
    show(part.verdict, reply.state === "done" || reply.state === "stopped");
  };
  const drawReply = (part, reply, turn, words) => {
    tell(part.who, [reply.model, words[reply.manner]].filter(Boolean).join(" · "));
    const busy = reply.state === "working";
    tell(part.thoughtTitle, busy && !reply.text ? words.thinking : words.thought);
    tell(part.thought, reply.thought);
    show(part.fold, reply.thought);
    once(part.heard, [reply.heard, words.heard], () =>
      reply.heard ? [make("span", "", words.heard), make("q", "", reply.heard)] : []);
    show(part.heard, reply.heard);
    once(part.chips, [reply.labels, words.emotion], () => reply.labels.map(([field, label]) =>
      make("span", `osum-chip osum-${field}`, make("small", "", words[field]), label)));
    show(part.chips, reply.labels.length);
    tell(part.text, reply.text);
    show(part.text, reply.text);
    tell(part.state, busy ? words.working : reply.state === "stopped" ? words.stopped
      : reply.text || reply.heard || reply.labels.length ? "" : words.silent);
    part.state.classList.toggle("osum-busy", busy);
    show(part.state, part.state.textContent && reply.state !== "failed");
    tell(part.problem, reply.problem || "");
    show(part.problem, reply.problem);
    part.card.dataset.state = reply.state;
    drawSound(part, reply, words);
    drawMore(part, reply, turn, words);
    drawVerdict(part, reply, words);
  };
  const saveAll = (turns, words) => {
    const kept = turns.map((turn) => ({
      task: turn.task, text: turn.text, file: turn.name,
      replies: turn.replies.map(({ model, manner, heard, labels, thought, text, raw, timings, seconds }) =>
        ({ model, manner, heard, labels: Object.fromEntries(labels), thought, text, raw,
           timings: Object.fromEntries(timings), seconds })),
    }));
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(kept, null, 2)], { type: "application/json" }));
    link.download = "conversation.json";
    link.click();
    URL.revokeObjectURL(link.href);
  };
  const conversation = (element, props, watch, trigger) => {
    const list = make("div", "osum-turns"), empty = make("div", "osum-empty"), save = make("button", "osum-save-all");
    save.type = "button";
    element.replaceChildren(make("section", "osum", empty, list, save));
    const drawn = new Map();
    redraw = () => {
      const { words, turns, given } = props.value;
      const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 120;
      tell(empty, words.empty); show(empty, !turns.length);
      tell(save, words.download_all); show(save, turns.length);
      save.onclick = () => saveAll(turns, words);
      const kept = new Set();
      for (const turn of turns) {
        const key = turn.replies[0].key;
        kept.add(key);
        if (!drawn.has(key)) {
          const box = { whole: make("div", "osum-turn"), asked: make("div", "osum-question"),
            answers: make("div", "osum-answers"), replies: new Map() };
          box.whole.append(box.asked, box.answers);
          drawn.set(key, box);
          list.append(box.whole);
        }
        const box = drawn.get(key);
        drawQuestion(box.asked, turn, words);
        for (const reply of turn.replies) {
          if (!box.replies.has(reply.key)) {
            box.replies.set(reply.key, skeleton(trigger));
            box.answers.append(box.replies.get(reply.key).card);
          }
          const part = box.replies.get(reply.key);
          part.given = given[reply.key];
          drawReply(part, reply, turn, words);
        }
      }
      for (const [key, box] of drawn)
        if (!kept.has(key)) {
          box.whole.remove(); drawn.delete(key);
          for (const one of box.replies.keys()) {
            const sound = sounds.get(one);
            if (sound && sound.url) URL.revokeObjectURL(sound.url);
            sounds.delete(one);
            line = line.filter((other) => other !== one);
          }
        }
      if (atEnd) list.scrollTop = list.scrollHeight;
    };
    watch("value", redraw);
    redraw();
  };
  const player = (props, watch) => watch("value", () => hear(props.value));

  window.osum = { conversation, player, hush, sounds };
})();
