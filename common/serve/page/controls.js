// Controls of a page: buttons that start and stop something, recordings, files. The page's <meter>s,
// of which one is to be seen, show how loud it is.

import { show } from "/shared/client.js";
import { join, level, openMicrophone, wav } from "/shared/sound.js";

const meters = [...document.querySelectorAll("meter")];
// What may not be used while one of the buttons runs.
const OTHERS = "button, select, input[type=file], input[type=number], input[type=range]";

export function showLevel(samples) {
  setLevel(level(samples));
}

function setLevel(value) {
  for (const meter of meters) meter.value = value;
}

// A button that starts something and stops it when it is pressed again. `start` gets a function to
// be called when it has ended, and gives one that ends it, or nothing where it could not start.
export function toggle(button, start) {
  const label = button.textContent;
  let stop = null;
  button.onclick = async () => {
    if (stop) {
      button.disabled = true;
      return stop();
    }
    const others = [...document.querySelectorAll(OTHERS)].filter((one) => one !== button && !one.disabled);
    let over = false;
    const ended = () => {
      over = true;
      stop = null;
      button.disabled = false;
      button.textContent = label;
      button.setAttribute("aria-pressed", "false");
      others.forEach((one) => (one.disabled = false));
      setLevel(0);
    };
    others.forEach((one) => (one.disabled = true));
    button.disabled = true;
    stop = await start(ended);
    if (over || !stop) return ended();
    button.disabled = false;
    button.textContent = "Stop";
    button.setAttribute("aria-pressed", "true");
  };
}

// A button that records; `use` gets the WAV file, and `place` shows what it returns.
export function recording(button, place, use) {
  toggle(button, async (ended) => {
    const blocks = [];
    let microphone = null;
    await show(place, "", async () => {
      microphone = await openMicrophone((block) => {
        blocks.push(block);
        showLevel(block);
      });
      return "Speak now.";
    });
    return microphone && (async () => {
      await microphone.stop();
      ended();
      await show(place, "Sending.", () => use(wav(join(blocks), microphone.rate)));
    });
  });
}

// A field for a file; the same for what is chosen.
export function chosen(input, place, use) {
  input.onchange = async () => {
    const [file] = input.files;
    if (file) await show(place, "Sending.", () => use(file));
    input.value = ""; // so that the same file can be chosen again
  };
}

// The body of a request: a file, and fields beside it, which may be files too.
export function form(blob, fields = {}) {
  const body = new FormData();
  body.append("file", blob, blob.name ?? "recording.wav");
  for (const [name, value] of Object.entries(fields)) {
    if (value instanceof Blob) body.append(name, value, value.name ?? `${name}.wav`);
    else body.append(name, value);
  }
  return body;
}
