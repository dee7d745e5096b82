/* Sound in the browser, played as it comes: 16-bit pieces without a gap, one reply after the other.

   window.osum.begin()              a new run: whatever plays is cut off
   window.osum.add(key, rate, pcm)  the next samples of a reply, 16 bits each, in base64
   window.osum.end(key)             the reply has ended: the next one may speak
   window.osum.hush()               silence at once; gives {key, ms}, what was playing and how far
   window.osum.left()               seconds of sound that are still to be played
   window.osum.take(value)          the page's form of all this: every piece of a run so far
*/
(() => {
  const LEAD_S = 0.08;               // before the first sound of a run, so that it does not stutter
  const sounds = new Map();          // key -> {rate, chunks, scheduled, ended, start}
  let line = [], muted = false;      // keys of the run, in the order in which they speak
  let context = null, playhead = 0, sources = [];
  let run = null, taken = 0;         // of take(): pieces of this run that have been taken

  const schedule = (sound, chunk) => {
    if (muted || !chunk.length) return;
    context = context || new AudioContext();
    if (context.state === "suspended") context.resume();
    const buffer = context.createBuffer(1, chunk.length, sound.rate), wave = buffer.getChannelData(0);
    for (let at = 0; at < chunk.length; at++) wave[at] = chunk[at] / 32768;
    const source = context.createBufferSource();
    source.buffer = buffer;
    source.connect(context.destination);
    playhead = Math.max(playhead, context.currentTime + LEAD_S);
    if (sound.start === null) sound.start = playhead;
    source.start(playhead);
    playhead += buffer.duration;
    source.onended = () => { sources = sources.filter((other) => other !== source); };
    sources.push(source);
  };
  const pump = () => {
    for (const key of line) {
      const sound = sounds.get(key);
      while (sound.scheduled < sound.chunks.length) schedule(sound, sound.chunks[sound.scheduled++]);
      if (!sound.ended) return;
    }
  };
  const add = (key, rate, pcm) => {
    if (!sounds.has(key)) {
      sounds.set(key, { rate, chunks: [], scheduled: 0, ended: false, start: null });
      line.push(key);
    }
    sounds.get(key).chunks.push(new Int16Array(Uint8Array.from(atob(pcm), (c) => c.charCodeAt(0)).buffer));
    pump();
  };
  const end = (key) => {
    if (sounds.has(key)) sounds.get(key).ended = true;
    pump();
  };
  const hush = () => {
    const now = context ? context.currentTime : 0, begun = (key) => {
      const start = sounds.get(key).start;
      return start !== null && start <= now;
    };
    const key = now < playhead ? line.filter(begun).pop() : undefined;
    muted = true;
    for (const source of sources) { try { source.stop(); } catch (error) { /* had not begun */ } }
    sources = [];
    playhead = 0;
    return key === undefined ? null : { key, ms: Math.round(1000 * (now - sounds.get(key).start)) };
  };
  const left = () => (context ? Math.max(0, playhead - context.currentTime) : 0);
  const begin = () => {
    hush();
    sounds.clear();
    line = [];
    muted = false;
  };
  const take = (value) => {
    if (!value || !value.run) return;
    if (value.run !== run) { begin(); run = value.run; taken = 0; }
    for (; taken < value.pieces.length; taken++) {
      const { reply, rate, pcm } = value.pieces[taken];
      add(reply, rate, pcm);
    }
    value.ended.forEach(end);
  };
  window.osum = { begin, add, end, hush, left, take, sounds };
})();
