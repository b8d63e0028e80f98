// Faces of a recording, or one that follows a voice. The parts of the page that do not belong to
// what the server takes stay hidden.

import { ask, show } from "/shared/client.js";
import { chosen, form, recording, showLevel, toggle } from "/shared/controls.js";
import { join, wav } from "/shared/sound.js";
import { stream } from "/shared/stream.js";

const $ = (id) => document.getElementById(id);
const KEPT_SECONDS = 60; // of a live voice, to be drawn again
let voice = null; // the recording that the faces are of
let asked = 0; // times; what was asked for last is shown

const seed = () => Number.parseInt($("seed").value, 10) || 0;

async function draw(blob) {
  const mine = ++asked;
  const body = form(blob, { count: $("count").value, seed: seed() });
  const picture = await (await ask("/faces", { method: "POST", body })).blob();
  if (mine !== asked) return "";
  present(picture);
  hear(blob);
  return "";
}

function present(picture) {
  URL.revokeObjectURL($("picture").src);
  $("picture").src = $("save").href = URL.createObjectURL(picture);
  $("result").hidden = false;
}

// From now on it is this voice that other faces are drawn of.
function hear(blob) {
  if (blob === voice) return;
  voice = blob;
  URL.revokeObjectURL($("heard").src);
  $("heard").src = URL.createObjectURL(blob);
  $("others").disabled = false;
}

function drawAgain() {
  if (voice) show($("drawing"), "Drawing.", () => draw(voice));
}

// Resolves when the stream has ended, with what is to be said, or throws its reason.
async function follow(signal) {
  const blocks = [];
  let size = 0;
  let microphone = null;
  let drawn = false;
  asked++;
  await stream("/live", { seed: seed() }, signal, {
    begun(answer, opened) {
      microphone = opened;
      $("status").textContent = "Speak now.";
    },
    sent(samples) {
      blocks.push(samples);
      size += samples.length;
      while (size > KEPT_SECONDS * microphone.rate) size -= blocks.shift().length;
      showLevel(samples);
    },
    came(frame) {
      if (frame instanceof ArrayBuffer) {
        drawn = true;
        present(new Blob([frame], { type: "image/png" }));
      } else $("status").textContent = `${frame.voice_seconds.toFixed(0)} s of the voice so far.`;
    },
  });
  if (!drawn) return "No voice was heard. Speak louder, nearer or longer.";
  hear(wav(join(blocks), microphone.rate));
  return "";
}

toggle($("live"), async (ended) => {
  const control = new AbortController();
  show($("status"), "Connecting.", () => follow(control.signal)).then(ended);
  return () => control.abort();
});
recording($("record"), $("status"), draw);
chosen($("file"), $("status"), draw);
$("count").onchange = $("seed").onchange = drawAgain;
$("others").onclick = () => {
  $("seed").value = Math.floor(Math.random() * 2 ** 31);
  drawAgain();
};

show($("problem"), "", async () => {
  const about = await (await ask("/health")).json();
  for (const part of document.querySelectorAll("[data-takes]")) part.hidden = part.dataset.takes !== about.takes;
});
