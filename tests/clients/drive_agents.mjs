// @openai/agents-realtime for JavaScript, its defaults kept, over a plain WebSocket.
import { readFileSync } from "node:fs";
import { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession } from "@openai/agents-realtime";

const [address, folder] = process.argv.slice(2);
const PIECE_MS = 100, PIECE_BYTES = 4800, SAMPLES_A_MS = 24, STEP_MS = 60000, LEAST_AUDIO_S = 0.5;

function passed(step, told) {
  process.stdout.write(`${JSON.stringify({ step, told })}\n`);
}

function check(holds, told) {
  if (!holds) throw new Error(JSON.stringify(told));
}

// A session with a microphone that never stops: what is to be said, silence otherwise.
class Talk {
  constructor() {
    this.bytes = 0;
    this.waiting = Buffer.alloc(0);
    this.waits = [];
    this.session = new RealtimeSession(new RealtimeAgent({ name: "Assistant" }), {
      transport: new OpenAIRealtimeWebSocket({ url: `ws${address.slice(4)}/v1/realtime` }),
    });
    this.session.on("audio", (event) => {
      this.bytes += event.data.byteLength;
    });
    this.session.on("agent_start", () => {
      this.bytes = 0;
    });
    this.session.on("error", (event) => {
      process.stderr.write(`error: ${JSON.stringify(event)}\n`);
      process.exit(3);
    });
  }

  async open() {
    await this.session.connect({ apiKey: "none" });
    const began = Date.now();
    let sent = 0;
    this.clock = setInterval(() => {
      for (; sent * PIECE_MS < Date.now() - began; sent += 1) {
        const piece = Buffer.alloc(PIECE_BYTES);
        this.waiting.copy(piece);
        this.waiting = this.waiting.subarray(PIECE_BYTES);
        this.session.sendAudio(new Uint8Array(piece).buffer);
      }
    }, PIECE_MS / 2);
  }

  say(number) {
    this.waiting = Buffer.concat([this.waiting, readFileSync(`${folder}/question_${number}.pcm`)]);
  }

  until(kind) {
    return new Promise((resolve, reject) => {
      const late = setTimeout(() => reject(new Error(`no ${kind}`)), STEP_MS);
      this.session.once(kind, (...given) => {
        clearTimeout(late);
        resolve(given);
      });
    });
  }

  async answered() {
    await this.until("agent_start");
    const [, , text] = await this.until("agent_end");
    const seconds = this.bytes / 2 / 1000 / SAMPLES_A_MS;
    check(seconds > LEAST_AUDIO_S && text, { seconds, text });
    return `${seconds.toFixed(1)} s: ${text}`;
  }

  // Role and words of each item, once so many questions are written down.
  async settled(turns) {
    const words = (item) => item.content.map((part) => part.transcript ?? "").join(" ");
    const isHeard = (item) => item.role === "user" && words(item);
    while (this.session.history.filter(isHeard).length < turns) await this.until("history_updated");
    return this.session.history.map((item) => item.role);
  }

  close() {
    clearInterval(this.clock);
    this.session.close();
  }
}

const first = new Talk();
await first.open();
passed("connect", "session opened");
first.say(3);
passed("turn", await first.answered());
first.say(4);
await first.until("audio");
first.say(5);
await first.until("audio_interrupted");
passed("break in", await first.answered());
first.say(6);
const told = await first.answered();
const roles = await first.settled(4);
check(roles.join() === Array(4).fill("user,assistant").join(), roles);
passed("second turn", `${told}; history of ${roles.length}`);
first.close();
const second = new Talk();
await second.open();
const answer = second.answered();
second.session.sendMessage("hello");
passed("reconnect", await answer);
second.close();
process.exit(0);
