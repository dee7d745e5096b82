/* The live page: a microphone, a socket of the public protocol (/v1/realtime), and what comes back.
   The same file is the page's script and, loaded as an audio worklet, what records. */
"use strict";
const RATE = 24000;                          // samples a second
const SENT = RATE / 10;                      // samples of one message
if (typeof registerProcessor === "function") {
  const STEP = sampleRate / RATE;            // of this browser's samples in one of ours, their mean
  registerProcessor("recorder", class extends AudioWorkletProcessor {
    sum = 0;
    missing = STEP;
    made = [];
    process(inputs) {
      for (const value of inputs[0][0] || []) {
        for (let rest = 1; rest > 1e-9;) {
          const share = Math.min(rest, this.missing);
          this.sum += share * value;
          rest -= share;
          this.missing -= share;
          if (this.missing > 1e-9) continue;
          this.made.push(Math.max(-32768, Math.min(32767, Math.round(this.sum / STEP * 32768))));
          this.sum = 0;
          this.missing += STEP;
        }
      }
      if (this.made.length >= SENT) this.port.postMessage(Int16Array.from(this.made.splice(0)));
      return true;
    }
  });
} else {
  const LABELS = ["emotion", "age", "gender", "event", "style"];
  const TEXTS = {
    en: { lead: "Talk to it: it hears the words and how they are said.", start: "Talk", stop: "Stop", hold: "Hold to talk",
      push: "push to talk", echo: "echo cancellation", thinking: "thinks", byLabels: "by labels", inWords: "in plain words",
      not: "not at all", device: "microphone", key: "API key", theme: "light or dark", empty: "Press the button and say something.",
      idle: "not connected", connecting: "connecting", listening: "listening", speaking: "speaking", thought: "what it thought",
      refused: "The microphone was refused. Allow it for this page, then press the button again.",
      insecure: "This browser gives no microphone to this page: open it on localhost or by https.",
      silent: "No microphone gives sound. Plug one in, or choose another, then press the button again.",
      gone: "The server is gone; press the button to connect again.", words: "words", sound: "sound" },
    zh: { lead: "和它说话：它听懂内容，也听出语气。", start: "开始对话", stop: "结束", hold: "按住说话",
      push: "按键说话", echo: "回声消除", thinking: "思考", byLabels: "用标签", inWords: "用自然语言", not: "不思考",
      device: "麦克风", key: "密钥", theme: "明暗", empty: "按下按钮，说点什么。", idle: "未连接", connecting: "连接中",
      listening: "在听", speaking: "在说", thought: "它的思考", refused: "麦克风被拒绝。请允许本页使用麦克风，然后再按一次按钮。",
      insecure: "浏览器不给本页麦克风：请用 localhost 或 https 打开。", silent: "没有可用的麦克风。请接上或换一个，然后再按一次按钮。", gone: "服务器已断开；按按钮重新连接。",
      words: "文字", sound: "声音" },
  };
  const at = (id) => document.getElementById(id);
  const saved = (name, otherwise) => localStorage.getItem(`osum.${name}`) || otherwise;
  let language = saved("language", navigator.language.startsWith("zh") ? "zh" : "en");
  let socket = null, stream = null, context = null, state = "idle", pressed = false;
  let pieces = 0, releasing = 0;                 // sent while the button is held; its timer
  let heard = null, reply = null, stopped = 0;   // cards under way; when the user's turn ended
  const cards = new Map();                       // item id -> card

  const text = (name) => TEXTS[language][name];
  const show = (next) => {
    state = next;
    at("state").textContent = text(next);
    at("state").className = next;
    const open = socket !== null, push = at("push").checked;
    at("go").firstElementChild.textContent = !open ? text("start") : push ? text("hold") : text("stop");
    at("go").classList.toggle("on", open && (!push || pressed));
  };
  const translate = () => {
    document.documentElement.lang = language;
    for (const one of document.querySelectorAll("[data-text]")) one.textContent = text(one.dataset.text);
    for (const one of document.querySelectorAll("[data-label]")) one.setAttribute("aria-label", text(one.dataset.label));
    at("talk").dataset.empty = text("empty");
    at("language").textContent = language === "en" ? "中文" : "English";
    show(state);
  };
  const notice = (message) => { at("notice").hidden = !message; at("notice").textContent = message || ""; };
  const send = (event) => { if (socket && socket.readyState === 1) socket.send(JSON.stringify(event)); };

  // Cards: what was said, by either side.
  const card = (id, kind) => {
    if (cards.has(id)) return cards.get(id);
    const one = document.createElement("article");
    one.className = `turn ${kind}`;
    one.innerHTML = '<div class="chips"></div><div class="words"></div>';
    at("talk").append(one);
    one.scrollIntoView({ block: "end", behavior: "smooth" });
    cards.set(id, one);
    return one;
  };
  const words = (one, value) => { one.querySelector(".words").textContent = value; };
  const chips = (one, perception) => {
    const box = one.querySelector(".chips");
    box.replaceChildren(...LABELS.filter((name) => perception[name] && !(name === "event" && perception[name].label === "OTHER")).map((name) => {
      const chip = document.createElement("span");
      chip.className = `chip ${name}`;
      chip.textContent = perception[name].label.toLowerCase();
      return chip;
    }));
  };
  const thought = (one, value, whole) => {
    let box = one.querySelector("details");
    if (!box) {
      box = document.createElement("details");
      box.innerHTML = "<summary></summary><div></div>";
      box.firstElementChild.textContent = text("thought");
      one.append(box);
    }
    box.lastElementChild.textContent = whole ? value : box.lastElementChild.textContent + value;
  };
  const timing = (one, name) => {
    if (!stopped || one.dataset[name]) return;
    one.dataset[name] = `${text(name)} ${((performance.now() - stopped) / 1000).toFixed(2)} s`;
    let box = one.querySelector(".times");
    if (!box) { box = document.createElement("div"); box.className = "times"; one.append(box); }
    box.textContent = ["words", "sound"].map((each) => one.dataset[each]).filter(Boolean).join(" · ");
  };

  // What the server says.
  const hush = () => {
    const playing = window.osum.hush();
    if (!playing) return;
    send({ type: "conversation.item.truncate", item_id: playing.key, content_index: 0, audio_end_ms: playing.ms });
    if (cards.has(playing.key)) cards.get(playing.key).classList.add("cut");
  };
  const take = {
    "session.created": () => { configure(); show("listening"); },
    "input_audio_buffer.speech_started": (event) => { hush(); heard = card(event.item_id, "user"); stopped = 0; show("listening"); },
    "input_audio_buffer.speech_stopped": () => { stopped = performance.now(); },
    "input_audio_buffer.committed": (event) => { heard = card(event.item_id, "user"); stopped = stopped || performance.now(); notice(""); },
    "conversation.item.input_audio_transcription.completed": (event) => words(card(event.item_id, "user"), event.transcript),
    "osum.perception": (event) => chips(card(event.item_id, "user"), event),
    "osum.thought.delta": (event) => { if (heard) thought(heard, event.delta, false); },
    "osum.thought.done": (event) => { if (heard && event.thought) thought(heard, event.thought, true); },
    "response.output_item.added": (event) => { reply = card(event.item.id, "reply"); window.osum.begin(); },
    "response.output_audio_transcript.delta": (event) => {
      words(reply, reply.querySelector(".words").textContent + event.delta);
      timing(reply, "words");
    },
    "response.output_audio_transcript.done": (event) => words(card(event.item_id, "reply"), event.transcript),
    "response.output_audio.delta": (event) => {
      window.osum.add(event.item_id, RATE, event.delta);
      timing(reply, "sound");
      show("speaking");
    },
    "response.output_audio.done": (event) => window.osum.end(event.item_id),
    "response.done": (event) => {
      stopped = 0;
      if (event.response.status === "failed") notice(event.response.status_details.error.message);
      if (event.response.status === "cancelled") for (const item of event.response.output) card(item.id, "reply").classList.add("cut");
      const played = () => { if (state === "speaking" && !window.osum.left()) show("listening"); };
      setTimeout(played, 1000 * window.osum.left() + 50);
    },
    error: (event) => { if (event.error.code !== "response_cancel_not_active") notice(event.error.message); },
  };

  const configure = () => send({ type: "session.update", session: {
    type: "realtime", x_osum: { events: true, thinking: at("thinking").value },
    audio: { input: { transcription: { model: "osum" },
      turn_detection: at("push").checked ? null : { type: "semantic_vad" } } } } });

  const connect = () => {
    const where = new URL("v1/realtime", location.href);
    where.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    const key = at("key").value;
    const made = socket = new WebSocket(where, key ? ["realtime", `openai-insecure-api-key.${key}`] : ["realtime"]);
    show("connecting");
    made.onmessage = (message) => {
      if (made !== socket) return;           // of a connection that was left
      const event = JSON.parse(message.data);
      if (take[event.type]) take[event.type](event);
    };
    made.onclose = (event) => {
      if (made !== socket) return;
      if (event.code === 1006) at("key-row").hidden = false;
      notice(event.reason || text("gone"));
      close();
    };
  };
  const open = async () => {
    notice("");
    if (!navigator.mediaDevices) { notice(text("insecure")); return; }
    const wanted = { echoCancellation: at("echo").checked, noiseSuppression: false, autoGainControl: true };
    if (at("device").value) wanted.deviceId = at("device").value;
    at("go").disabled = true;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: wanted });
      stream.getAudioTracks()[0].onended = () => { close(); notice(text("silent")); };
      await list();
      await record();
      connect();
    } catch (error) {
      close();
      const known = { NotAllowedError: "refused", NotFoundError: "silent", NotReadableError: "silent" };
      notice(known[error.name] ? text(known[error.name]) : error.message);
    }
    at("go").disabled = false;
  };
  const record = async () => {
    let source;
    try {
      context = new AudioContext({ sampleRate: RATE });
      source = context.createMediaStreamSource(stream);
    } catch (error) {                        // Firefox: only at the rate of the device
      context.close();
      context = new AudioContext();
      source = context.createMediaStreamSource(stream);
    }
    context.resume();
    await context.audioWorklet.addModule("live.js");
    const recorder = new AudioWorkletNode(context, "recorder", { numberOfOutputs: 0 });
    recorder.port.onmessage = ({ data }) => {
      const level = Math.hypot(...data) / Math.sqrt(data.length) / 32768;
      at("meter").firstElementChild.style.width = `${Math.min(100, 300 * level)}%`;
      if (at("push").checked && !pressed) return;
      pieces++;
      send({ type: "input_audio_buffer.append", audio: btoa(String.fromCharCode(...new Uint8Array(data.buffer))) });
    };
    source.connect(recorder);
  };
  const close = () => {
    const old = socket;
    socket = null;
    if (old) old.close();
    if (stream) for (const track of stream.getTracks()) track.stop();
    if (context) context.close();
    stream = context = null;
    pressed = false;
    window.osum.hush();
    at("meter").firstElementChild.style.width = "0";
    show("idle");
  };
  const list = async () => {
    const found = (await navigator.mediaDevices.enumerateDevices()).filter((one) => one.kind === "audioinput");
    const chosen = at("device").value;
    at("device").replaceChildren(...found.map((one, number) => new Option(one.label || `${number + 1}`, one.deviceId)));
    at("device").value = stream ? stream.getAudioTracks()[0].getSettings().deviceId : chosen;
  };

  at("go").onclick = () => {
    if (!socket) open();
    else if (!at("push").checked) close();
  };
  const press = () => {
    clearTimeout(releasing);
    if (pressed || !socket || !at("push").checked) return;
    pressed = true;
    pieces = 0;
    hush();
    send({ type: "response.cancel" });
    send({ type: "input_audio_buffer.clear" });
    show("listening");
  };
  const release = () => {
    if (!pressed) return;
    clearTimeout(releasing);
    releasing = setTimeout(() => {
      pressed = false;
      if (pieces > 2) {                      // less than that is no turn
        send({ type: "input_audio_buffer.commit" });
        send({ type: "response.create" });
      }
      show(state);
    }, 150);
  };
  at("go").onpointerdown = press;
  at("go").onkeydown = (event) => { if (event.key === " " && !event.repeat) press(); };
  at("go").onkeyup = (event) => { if (event.key === " ") release(); };
  for (const name of ["pointerup", "pointercancel", "pointerleave"]) at("go").addEventListener(name, release);
  at("push").onchange = at("thinking").onchange = () => { configure(); show(state); };
  at("echo").onchange = at("device").onchange = () => { if (socket) { close(); open(); } };
  if (navigator.mediaDevices) navigator.mediaDevices.ondevicechange = list;
  at("language").onclick = () => {
    language = language === "en" ? "zh" : "en";
    localStorage.setItem("osum.language", language);
    translate();
  };
  const theme = (value) => { document.documentElement.dataset.theme = value; localStorage.setItem("osum.theme", value); };
  at("theme").onclick = () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  theme(saved("theme", matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
  translate();
}
