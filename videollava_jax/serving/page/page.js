// The page of `videollava serve`: a client of the server's public API, and of nothing else.
//
// Top to bottom: what needs no document (streams, code to copy, words), the server, the medium, the frames that the
// model sees, questions and answers, and what starts it all. Whatever the model or a file says becomes a text node.

// ── streams ──

/** Splits server-sent events out of text that arrives in pieces of any size. */
export class EventParser {
  #rest = "";
  #data = [];

  /** Takes a piece of text; returns the data of every event that it completes. */
  push(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/); // a \r at the end may be half of \r\n
    this.#rest = lines.pop();
    const events = [];
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length) events.push(this.#data.join("\n"));
        this.#data = [];
      } else if (line === "data" || line.startsWith("data:")) {
        this.#data.push(line.slice(5).replace(/^ /, ""));
      } // comments, and fields that this protocol does not have, say nothing
    }
    return events;
  }
}

/** Yields the objects of a streamed completion until `[DONE]`. Throws a Refused for an error that the stream reports. */
export async function* completionChunks(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  const parser = new EventParser();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Refused(0, "The connection ended before the answer did.");
      for (const data of parser.push(value)) {
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Refused(0, chunk.error.message, chunk.error.code);
        yield chunk;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// ── code to copy ──

const MEDIUM = "\u0000medium\u0000"; // stands for the medium's URL in the body of a request that is shown as code

/** The body of a request whose medium has the URL `url`. */
export function requestBody({ model, kind, url, turns, question, rule, maxTokens, temperature }) {
  const part = `${kind}_url`;
  const content = [{ type: part, [part]: { url } }];
  const messages = [
    ...turns.flatMap((turn) => [
      ["user", turn.question],
      ["assistant", turn.answer],
    ]),
    ["user", question],
  ].map(([role, text], index) => ({ role, content: index ? text : [...content, { type: "text", text }] }));
  const body = { model, messages, temperature };
  if (maxTokens) body.max_tokens = maxTokens;
  if (rule) body.media_io_kwargs = { video: rule };
  return body;
}

/** A text as one word of a POSIX shell. */
export const shellQuoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** A value of JSON as Python's literal; `MEDIUM` within it becomes the expression `medium`. */
export function pythonLiteral(value, medium = '"medium"', indent = "") {
  if (value === MEDIUM) return medium;
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = indent + "    ";
  const entries = Array.isArray(value)
    ? value.map((item) => pythonLiteral(item, medium, inner))
    : Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}: ${pythonLiteral(item, medium, inner)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const short = open + entries.join(", ") + close;
  return short.length + indent.length < 100 && !short.includes("\n")
    ? short
    : `${open}\n${entries.map((entry) => `${inner}${entry},\n`).join("")}${indent}${close}`;
}

/** A request as commands of a shell. `source` is {file: name} or {url}; with `keyed` the key comes from the environment. */
export function asCurl(request, source, server, keyed) {
  const head = keyed ? ' -H "Authorization: Bearer $VIDEOLLAVA_API_KEY"' : "";
  const body = JSON.stringify(requestBody({ ...request, url: source.url ?? MEDIUM }), null, 1).replace(/\n */g, " ");
  const upload = source.url
    ? ""
    : `file=$(curl -sS ${server}v1/files${head} -F purpose=user_data -F ${shellQuoted(`file=@"${source.file.replace(/["\\]/g, "\\$&")}"`)} |\n` +
      `  python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])')\n`;
  const quoted = shellQuoted(body).replaceAll(JSON.stringify(MEDIUM).slice(1, -1), `vllm-file://'"$file"'`);
  return `${upload}curl -sS ${server}v1/chat/completions${head} -H 'Content-Type: application/json' -d ${quoted}\n`;
}

/** A request as a program with the `openai` package. */
export function asPython(request, source, server, keyed) {
  const { media_io_kwargs: frames, ...body } = requestBody({ ...request, url: source.url ?? MEDIUM });
  const fields = Object.entries(body).map(
    ([key, value]) => `    ${key}=${pythonLiteral(value, '"vllm-file://" + file.id', "    ")},\n`,
  );
  if (frames) fields.push(`    extra_body=${pythonLiteral({ media_io_kwargs: frames }, "", "    ")},\n`);
  return (
    `${keyed ? "import os\n\n" : ""}from openai import OpenAI\n\n` +
    `client = OpenAI(base_url="${server}v1", api_key=${keyed ? 'os.environ["VIDEOLLAVA_API_KEY"]' : '"none"'})\n` +
    (source.url
      ? ""
      : `file = client.files.create(file=open(${JSON.stringify(source.file)}, "rb"), purpose="user_data")\n`) +
    `stream = client.chat.completions.create(\n${fields.join("")}    stream=True,\n)\n` +
    `for chunk in stream:\n    if chunk.choices:\n        print(chunk.choices[0].delta.content or "", end="", flush=True)\nprint()\n`
  );
}

// ── words ──

const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
export const inSeconds = (time) =>
  time < 60 ? `${time.toFixed(2)} s` : `${Math.floor(time / 60)}:${(time % 60).toFixed(1).padStart(4, "0")}`;

/** The length of what a text begins with in whole sentences or lines. */
export const wholeSentences = (text) => text.length - text.split(/(?<=[.!?](?=\s)|[。！？\n])/u).at(-1).length;

/** The small line under an answer, from the usage that the server counts and the seconds that it took. */
export function facts(usage, took) {
  if (!usage) return `${took.toFixed(2)} s`;
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const rate = usage.completion_tokens / took;
  const words = [
    `${count(usage.completion_tokens, "token")} in ${took.toFixed(2)} s`,
    `${rate.toFixed(rate < 10 ? 1 : 0)} tokens/s`,
  ];
  words.push(
    cached
      ? `${cached.toLocaleString("en")} of ${count(usage.prompt_tokens, "prompt token")} from the cache`
      : count(usage.prompt_tokens, "prompt token"),
  );
  return words.join(" · ");
}

/** A refusal by the server: its status (0: within a stream), message and code, and the seconds after which to try again. */
export class Refused extends Error {
  constructor(status, message, code, after) {
    super(message || `the server answered with status ${status}`);
    Object.assign(this, { status, code, after });
  }
}

/** An error as a sentence for whoever asks. */
export function inWords(error) {
  if (!(error instanceof Refused)) return "The server cannot be reached. Is it still running?";
  const message = error.status === 401 ? "the server asks for its API key" : error.message;
  const sentence = message[0].toUpperCase() + message.slice(1).replace(/[^.?!]$/, "$&.");
  return error.after ? `${sentence} Try again in ${count(error.after, "second")}.` : sentence;
}

// ── the server ──

const $ = (id) => document.getElementById(id);
const API = new URL(".", globalThis.document?.baseURI ?? "http://localhost/").href;
let isReady; // says that the server takes requests
const ready = new Promise((resolve) => (isReady = resolve));
const state = { model: "", key: "", medium: null, sides: [], turns: [], known: new Map(), uploads: [] };

function make(tag, properties = {}, ...children) {
  const { class: name, ...rest } = properties;
  const element = Object.assign(document.createElement(tag), rest);
  if (name) element.className = name;
  element.append(...children);
  return element;
}

function show(element, text) {
  element.textContent = text;
  element.hidden = !text;
}

const authorization = () => (state.key ? { Authorization: `Bearer ${state.key}` } : {});

async function refusal(status, text, headers) {
  let message, code;
  try {
    ({ message, code } = JSON.parse(text).error);
  } catch {
    // A proxy's page or nothing at all: the status has to do.
  }
  if (status === 401) $("key-form").hidden = false;
  return new Refused(status, message, code, Number(headers.get("retry-after")) || 0);
}

async function call(path, options = {}) {
  const response = await fetch(API + path, { ...options, headers: { ...authorization(), ...options.headers } });
  if (!response.ok) throw await refusal(response.status, await response.text(), response.headers);
  return response;
}

/** Asks for the model's name, and until the server is ready. */
async function connect() {
  const words = (kind, text) => {
    $("server").className = kind;
    if ($("server-words").textContent !== text) $("server-words").textContent = text;
  };
  try {
    const [model] = (await (await call("v1/models")).json()).data;
    if (!state.model) await showExamples();
    state.model = model.id;
    $("key-form").hidden = true;
    await call("health");
    words("ready", `${model.id}, ready`);
    isReady();
  } catch (error) {
    const [kind, text] = { 401: ["failed", "needs an API key"], 503: ["", "starting"] }[error.status] ?? [
      "failed",
      "not reachable",
    ];
    words(kind, text);
    if (error.status === 401) $("key").focus();
    else setTimeout(connect, 1000);
  }
}

// ── the medium ──

const MOST_HASHED = 2 ** 26; // bytes: the browser holds them all at once

/** The header by which balancers send all requests about a medium to one server; none where a browser cannot hash. */
function named(medium) {
  const hash = globalThis.crypto?.subtle; // there is none on plain HTTP from another machine
  if (!hash) return Promise.resolve({});
  medium.named ??= (async () => {
    const whole = medium.file
      ? await medium.file.slice(0, MOST_HASHED).arrayBuffer()
      : new TextEncoder().encode(medium.url);
    const digest = new Uint8Array(await hash.digest("SHA-256", whole));
    return { "X-Media": [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("") };
  })().catch(() => ({})); // a file that has gone: its upload says so
  return medium.named;
}

/** Sends a file, once: the same file chosen again has the id that it got. Returns a promise of what the server says of it. */
function upload(medium) {
  const { file } = medium;
  const identity = `${file.name} ${file.size} ${file.lastModified}`;
  if (!state.known.has(identity)) {
    const send = (headers) => (resolve, reject) => {
      const request = new XMLHttpRequest(); // fetch does not say how far an upload has come
      const form = new FormData();
      form.append("purpose", "user_data");
      form.append("file", file);
      request.open("POST", `${API}v1/files`);
      for (const [name, value] of Object.entries({ ...authorization(), ...headers }))
        request.setRequestHeader(name, value);
      request.upload.onprogress = (event) => {
        $("upload").hidden = event.loaded === event.total;
        $("upload").value = event.loaded / event.total;
      };
      request.onload = async () => {
        $("upload").hidden = true;
        if (request.status < 300) {
          const made = JSON.parse(request.responseText);
          state.uploads.push({ id: made.id, headers });
          resolve(made);
        } else
          reject(
            await refusal(request.status, request.responseText, { get: (name) => request.getResponseHeader(name) }),
          );
      };
      request.onerror = () => reject(new TypeError("no connection"));
      request.send(form);
    };
    const sent = named(medium).then((headers) => new Promise(send(headers)));
    state.known.set(identity, sent);
    sent.catch(() => state.known.delete(identity));
  }
  medium.forget = () => state.known.delete(identity);
  return state.known.get(identity);
}

const PICTURE = /\.(png|jpe?g|webp|bmp|tiff?|heic|avif)$/i; // GIFs may move: they are taken for videos

function chosen(file) {
  const kind =
    file.type === "image/gif" ? "video" : file.type.startsWith("image/") || PICTURE.test(file.name) ? "image" : "video";
  open({ kind, name: file.name, file, src: URL.createObjectURL(file), still: file.type.startsWith("image/") });
}

/** Shows a medium and has the server take it. */
async function open(medium) {
  close();
  state.medium = medium;
  $("drop").hidden = true;
  $("player").hidden = false;
  $("empty").hidden = true;
  $("medium-name").textContent = medium.name;
  const still = medium.kind === "image" || medium.still;
  const screen = make(still ? "img" : "video", { src: medium.src, alt: medium.name });
  if (!still) {
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    Object.assign(screen, { controls: true, muted: true, loop: true, playsInline: true, autoplay: !calm });
    screen.setAttribute("aria-label", medium.name);
    screen.onplay = screen.onseeked = follow;
  }
  screen.onerror = () => cannotShow(medium, screen);
  $("screen").replaceChildren(screen);
  medium.screen = screen;
  $("seen").hidden = false;
  for (const side of state.sides) side.forMedium(medium);
  if (medium.file) {
    $("medium-state").textContent = "waiting for the server";
    await ready;
    try {
      if (state.medium === medium) $("medium-state").textContent = "uploading";
      medium.kind = (await upload(medium)).kind ?? medium.kind; // by its content
      if (state.medium === medium) $("medium-state").textContent = "uploaded";
      say(`${medium.name} is uploaded`);
    } catch (error) {
      if (state.medium === medium) refuseMedium(error);
      return;
    }
  }
  if (state.medium !== medium) return;
  for (const side of state.sides) side.forMedium(medium);
  for (const side of visibleSides()) side.look();
  if (matchMedia("(pointer: fine)").matches) $("question-a").focus({ preventScroll: true }); // else a keyboard covers it all
}

/** Says that the browser cannot show a medium, unless it is the picture of an address that does not say what it is. */
function cannotShow(medium, screen) {
  const words = () => make("p", {}, "This browser cannot show it. The model may read it all the same.");
  if (!medium.url || medium.kind === "image") return screen.replaceWith(words());
  const image = make("img", { src: medium.src, alt: medium.name, onerror: () => image.replaceWith(words()) });
  image.onload = () => {
    medium.kind = "image";
    for (const side of state.sides) side.forMedium(medium);
  };
  screen.replaceWith(image);
}

function refuseMedium(error) {
  close();
  show($("medium-error"), inWords(error));
}

function close() {
  if (state.medium?.file) URL.revokeObjectURL(state.medium.src);
  state.medium = null;
  $("screen").replaceChildren();
  $("medium-state").textContent = "";
  $("drop").hidden = false;
  for (const id of ["player", "seen", "suggestions", "upload"]) $(id).hidden = true;
  show($("medium-error"), "");
}

/** The URL by which the API knows the medium. */
const mediumUrl = async (medium) => medium.url ?? `vllm-file://${(await upload(medium)).id}`;

async function showExamples() {
  const examples = await (await fetch(`${API}page/examples.json`)).json();
  $("examples").hidden = !examples.length;
  $("examples")
    .querySelector("ul")
    .replaceChildren(
      ...examples.map(({ name, type, questions }) =>
        make(
          "li",
          {},
          make(
            "button",
            {
              type: "button",
              class: "quiet",
              onclick: async () => {
                const bytes = await (await fetch(`${API}page/examples/${name}`)).blob();
                chosen(new File([bytes], name, { type, lastModified: 0 }));
                suggest(questions);
              },
            },
            type.startsWith("image/")
              ? make("img", { src: `${API}page/examples/${name}`, alt: "" })
              : make("video", { src: `${API}page/examples/${name}`, muted: true, preload: "auto", tabIndex: -1 }),
            name.replace(/\.\w+$/, "").replaceAll("-", " "),
          ),
        ),
      ),
    );
}

function suggest(questions) {
  $("suggestions").hidden = false;
  $("suggestions").replaceChildren(
    ...questions.map((question) =>
      make(
        "li",
        {},
        make("button", {
          type: "button",
          textContent: question,
          onclick: () => {
            $("question-a").value = question;
            ask();
          },
        }),
      ),
    ),
  );
}

// ── the frames that the model sees ──

class Side {
  constructor(letter) {
    this.letter = letter;
    this.element = $("side").content.firstElementChild.cloneNode(true);
    const find = (selector) => this.element.querySelector(selector);
    [this.number, this.unit, this.strip, this.timeline, this.about] = [
      "input",
      "select",
      ".strip",
      ".timeline",
      ".about",
    ].map(find);
    find(".letter").textContent = letter;
    find("legend .unseen").textContent = `Frames for ${letter}`;
    this.times = [];
    this.looked = Promise.resolve([]); // the images that the rule takes
    this.number.onchange = () => this.look();
    this.unit.onchange = () => {
      this.number.value = { num_frames: 8, fps: 1 }[this.unit.value] ?? "";
      this.number.hidden = !this.unit.value;
      this.look();
    };
  }

  /** What the request says about frames; null for a picture, and for the server's own rule. */
  get rule() {
    return state.medium?.kind === "video" && this.unit.value ? { [this.unit.value]: Number(this.number.value) } : null;
  }

  get ruleInWords() {
    const { value } = this.number;
    return { fps: `${value} a second`, num_frames: `${value} frames` }[this.unit.value] ?? "the server's frames";
  }

  /** Whether the rule has a number, or needs none; the browser says what is wrong with it. */
  isWhole() {
    return this.number.hidden || this.number.reportValidity();
  }

  forMedium(medium) {
    this.element.querySelector(".rule").hidden = this.timeline.hidden = medium.kind !== "video";
    this.looked = Promise.resolve([]);
    this.showTimes([], []);
    show(this.about, "");
  }

  /** Asks the server which frames the rule takes, and shows them. */
  look() {
    this.looked = this.fetchFrames();
  }

  async fetchFrames() {
    const { medium } = state;
    if (!medium?.file || !this.isWhole()) return [];
    const turn = (this.turn = {}); // of two answers on their way, the later question's counts
    this.strip.setAttribute("aria-busy", "true");
    let images = [];
    try {
      const rule = this.rule
        ? Object.entries(this.rule).map(([name, value]) => `${name === "fps" ? "fps" : "frames"}=${value}`)
        : [];
      const path = `v1/files/${(await upload(medium)).id}/frames?${rule.join("&")}`;
      const seen = await (await call(path, { headers: await named(medium) })).json();
      images = seen.data.map(({ image }) => image);
      if (this.turn === turn) this.showFrames(seen, images);
    } catch (error) {
      if (this.turn === turn) {
        this.showTimes([], []);
        show(this.about, inWords(error));
      }
    }
    if (this.turn === turn) this.strip.removeAttribute("aria-busy");
    return images;
  }

  showFrames({ data, total_frames: total }, images) {
    this.showTimes(
      data.map(({ seconds }) => seconds),
      images,
    );
    const timed = data.some(({ seconds }) => seconds !== null);
    show(
      this.about,
      timed
        ? `${count(data.length, "frame")} of ${total.toLocaleString("en")}, as the model gets them`
        : "As the model gets it",
    );
  }

  /** Shows frames by their times, seconds, and by images where there are any. A picture's time is null. */
  showTimes(times, images) {
    this.times = times;
    this.strip.replaceChildren(
      ...times.map((time, index) => {
        const image = images[index] ? make("img", { src: images[index], alt: "" }) : "";
        if (time === null) return make("li", {}, image);
        const button = make("button", { type: "button", onclick: () => seek(time) }, image, inSeconds(time));
        button.setAttribute("aria-label", `Frame ${index + 1}, ${inSeconds(time)}: show it in the player`);
        return make("li", {}, button);
      }),
    );
    this.markTimes();
    follow();
  }

  /** Draws the frames' times on the line below the player. */
  markTimes() {
    const length = state.medium?.screen?.duration;
    this.place = (element, time) => (element.style.left = `${Math.min(100, (100 * time) / length)}%`);
    this.playhead = make("b");
    const marks =
      length > 0 && length < Infinity
        ? this.times.filter((time) => time !== null).map((time) => [make("i"), time])
        : [];
    for (const [mark, time] of marks) this.place(mark, time);
    this.timeline.replaceChildren(...marks.map(([mark]) => mark), ...(marks.length ? [this.playhead] : []));
  }

  /** Marks the frame that the player is at. */
  follow(now) {
    this.place?.(this.playhead, now);
    const at = this.times.findLastIndex((time) => time !== null && time <= now + 0.01);
    [...this.strip.children].forEach((item, index) => item.firstElementChild?.classList.toggle("now", index === at));
  }
}

function seek(time) {
  const { screen } = state.medium ?? {};
  if (!(screen instanceof HTMLVideoElement)) return;
  screen.pause();
  screen.currentTime = time + 0.001; // a hair later, or rounding may show the frame before
}

const visibleSides = () => state.sides.slice(0, $("compare").checked ? 2 : 1);

let following = 0;

/** Marks the frames that the player is at, again and again while it plays. */
function follow() {
  cancelAnimationFrame(following);
  const { screen } = state.medium ?? {};
  if (!(screen instanceof HTMLVideoElement)) return;
  for (const side of visibleSides()) side.follow(screen.currentTime);
  if (!screen.paused) following = requestAnimationFrame(follow);
}

// ── questions and answers ──

/** Has a screen reader say something once it is done with what it says. */
function say(text) {
  $("spoken").append(make("span", {}, `${text} `));
  while ($("spoken").childElementCount > 8) $("spoken").firstElementChild.remove();
}

function ask() {
  const { medium } = state;
  const first = $("question-a").value.trim();
  const questions = [first, $("question-b").value.trim() || first].slice(0, visibleSides().length);
  show($("ask-error"), !medium ? "Choose a video or a picture first." : !first ? "Write a question first." : "");
  if (!medium || !first) return (medium ? $("question-a") : $("file")).focus();
  if (
    !visibleSides().every((side) => side.isWhole()) ||
    !$("max-tokens").reportValidity() ||
    !$("temperature").reportValidity()
  )
    return;
  const same = questions.every((question) => question === first);
  const turn = make("li", { class: "turn" });
  if (same) turn.append(make("h3", { class: "question" }, first, " ", make("span", { class: "of" }, medium.name)));
  const answers = make("div", { class: "answers" });
  turn.append(answers);
  $("turns").append(turn);
  questions.forEach((question, index) => {
    const side = state.sides[index];
    const before = $("follow").checked
      ? state.turns.filter((past) => past.medium === medium && past.letter === side.letter && past.answer)
      : [];
    const request = {
      model: state.model,
      kind: medium.kind,
      question,
      rule: side.rule,
      turns: before.map((past) => ({ question: past.request.question, answer: past.answer })),
      maxTokens: Number($("max-tokens").value),
      temperature: Number($("temperature").value),
    };
    const answer = {
      medium,
      letter: side.letter,
      request,
      answer: "",
      label: questions.length > 1 ? `${side.letter}: ` : "",
    };
    const title = make(
      same ? "h4" : "h3",
      { class: same ? "small" : "question" },
      make("span", { class: "letter" }, side.letter),
      same ? side.ruleInWords : question,
    );
    answers.append(draw(answer, questions.length > 1 ? title : null, side));
    state.turns.push(answer);
    run(answer);
  });
  $("question-a").value = $("question-b").value = "";
  turn.scrollIntoView({ block: "nearest" });
}

/** The elements of an answer that has not come yet, with the frames that it will be from. */
function draw(answer, title, side) {
  const frames = make("div", { class: "mini" });
  side.looked.then((images) => frames.append(...images.map((src) => make("img", { src, alt: "" }))));
  answer.text = make("p", { class: "text", dir: "auto" });
  answer.facts = make("p", { class: "facts" });
  answer.error = make("p", { class: "error", hidden: true });
  answer.error.setAttribute("role", "alert");
  const tool = (words, act) => make("button", { type: "button", class: "quiet", textContent: words, onclick: act });
  const source = answer.medium.url ? { url: answer.medium.url } : { file: answer.medium.name };
  const copy = (words, write) =>
    tool(words, (event) => copyText(event.target, words, write(answer.request, source, API, Boolean(state.key))));
  answer.halt = tool("Stop", () => answer.abort.abort());
  answer.again = tool("Ask again", () => run(answer));
  answer.tools = make(
    "p",
    { class: "tools" },
    answer.halt,
    answer.again,
    copy("Copy as curl", asCurl),
    copy("Copy as Python", asPython),
  );
  answer.element = make(
    "div",
    { class: "answer" },
    ...(title ? [title] : []),
    frames,
    answer.text,
    answer.facts,
    answer.error,
    answer.tools,
  );
  return answer.element;
}

/** Has the server answer, and shows the answer as it comes. */
async function run(answer) {
  const { medium, request, text } = answer;
  answer.abort = new AbortController();
  answer.answer = text.textContent = answer.facts.textContent = "";
  show(answer.error, "");
  running(answer, true);
  const started = performance.now();
  let usage,
    spoken = 0,
    ended = "";
  try {
    const stream = await begin(answer);
    for await (const chunk of completionChunks(stream)) {
      usage = chunk.usage ?? usage;
      if (chunk.videos?.[0]) seen(answer, chunk.videos[0]);
      const choice = chunk.choices?.[0];
      ended = choice?.finish_reason ?? ended;
      if (!choice?.delta?.content) continue;
      answer.answer += choice.delta.content;
      text.append(choice.delta.content);
      const whole = wholeSentences(answer.answer.slice(spoken)); // a screen reader could not follow pieces of words
      if (whole) say(answer.label + answer.answer.slice(spoken, spoken + whole));
      spoken += whole;
    }
    if (answer.answer.length > spoken) say(answer.label + answer.answer.slice(spoken));
    answer.facts.textContent =
      facts(usage, (performance.now() - started) / 1000) + (ended === "length" ? " · cut at the longest answer" : "");
  } catch (error) {
    if (answer.abort.signal.aborted) {
      answer.facts.textContent = `stopped after ${((performance.now() - started) / 1000).toFixed(2)} s`;
      say("Stopped");
    } else show(answer.error, inWords(error));
  }
  text.normalize();
  running(answer, false);
}

/** Shows the times of the frames that an answer is from, where the frames themselves are not to be had. */
function seen(answer, { frames, seconds: times, total_frames: total }) {
  if (!answer.medium.url || answer.medium !== state.medium || !times) return;
  const side = state.sides.find(({ letter }) => letter === answer.letter);
  side.showTimes(times, []);
  show(side.about, `${count(frames.length, "frame")} of ${total.toLocaleString("en")}, as the last answer says`);
}

/** Sends the question. A file that the server has dropped since is uploaded once more. */
async function begin(answer) {
  const { medium, request } = answer;
  for (let attempt = 0; ; attempt += 1) {
    const url = await mediumUrl(medium);
    request.kind = medium.kind; // which the server may have corrected
    const body = {
      ...requestBody({ ...request, url }),
      stream: true,
      stream_options: { include_usage: true },
    };
    try {
      const response = await call("v1/chat/completions", {
        method: "POST",
        headers: { "Content-Type": "application/json", ...(await named(medium)) },
        body: JSON.stringify(body),
        signal: answer.abort.signal,
      });
      return response.body;
    } catch (error) {
      if (attempt || error.code !== "no_such_file" || !medium.file) throw error;
      medium.forget();
    }
  }
}

function running(answer, is) {
  answer.running = is;
  answer.element.classList.toggle("running", is);
  answer.text.setAttribute("aria-busy", String(is));
  answer.halt.hidden = !is;
  answer.again.hidden = is;
  $("stop").hidden = !state.turns.some((turn) => turn.running);
}

function stop() {
  for (const turn of state.turns) if (turn.running) turn.abort.abort();
}

async function copyText(button, words, text) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    say("Copied");
    setTimeout(() => (button.textContent = words), 1500);
  } catch {
    $("copy-text").value = text; // a page that is not local needs https for the clipboard
    $("copy").showModal();
    $("copy-text").select();
  }
}

// ── the start ──

function start() {
  state.key = sessionStorage.getItem("key") ?? "";
  state.sides = ["A", "B"].map((letter) => new Side(letter));
  $("sides").append(state.sides[0].element);
  $("file").onchange = () => {
    if ($("file").files.length) chosen($("file").files[0]);
    $("file").value = "";
  };
  $("url-form").onsubmit = (event) => {
    event.preventDefault();
    const url = $("url").value;
    const name = decodeURIComponent(new URL(url).pathname.split("/").pop() || url);
    open({ kind: PICTURE.test(name) ? "image" : "video", name, url, src: url });
  };
  $("key-form").onsubmit = (event) => {
    event.preventDefault();
    state.key = $("key").value;
    sessionStorage.setItem("key", state.key);
    connect();
  };
  $("another").onclick = () => {
    close();
    $("file").focus();
  };
  $("compare").onchange = () => {
    const two = $("compare").checked;
    document.body.classList.toggle("two", two);
    $("question-b-box").hidden = !two;
    if (two) {
      $("sides").append(state.sides[1].element);
      state.sides[1].look();
    } else state.sides[1].element.remove();
  };
  $("ask").onsubmit = (event) => {
    event.preventDefault();
    ask();
  };
  for (const id of ["question-a", "question-b"])
    $(id).onkeydown = (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      ask();
    };
  $("stop").onclick = stop;
  document.onkeydown = (event) => {
    if (event.key === "Escape" && !$("copy").open) stop();
  };
  document.ondragover = (event) => {
    event.preventDefault();
    document.documentElement.classList.add("dragging");
  };
  document.ondragleave = (event) => {
    if (!event.relatedTarget) document.documentElement.classList.remove("dragging");
  };
  document.ondrop = (event) => {
    event.preventDefault();
    document.documentElement.classList.remove("dragging");
    if (event.dataTransfer.files.length) chosen(event.dataTransfer.files[0]);
  };
  document.onpaste = (event) => {
    if (event.clipboardData.files.length) chosen(event.clipboardData.files[0]);
  };
  addEventListener("pagehide", () => {
    // Files take room on the server. Whoever comes back to the page asks with a new upload.
    for (const { id, headers } of state.uploads) {
      const options = { method: "DELETE", headers: { ...authorization(), ...headers }, keepalive: true };
      fetch(`${API}v1/files/${id}`, options).catch(() => {});
    }
    state.uploads.length = 0;
    state.known.clear();
  });
  document.addEventListener("loadedmetadata", () => state.sides.forEach((side) => side.markTimes()), true);
  connect();
}

if (globalThis.document) start();
