// Enrol a voice; hear it out of a recording, or live.

import { ask, show } from "/shared/client.js";
import { chosen, form, recording, showLevel, toggle } from "/shared/controls.js";
import { decode, drawSpectrogram, fromPcm, join, wav } from "/shared/sound.js";
import { stream } from "/shared/stream.js";

const $ = (id) => document.getElementById(id);
const KEPT_SECONDS = 60; // of a live stream, to be heard again
let voice = null; // the server's name of it

async function enrol(blob) {
  const found = await (await ask("/voices", { method: "POST", body: form(blob) })).json();
  voice = found.voice;
  $("forget").hidden = false;
  $("own-label").hidden = true;
  return `This voice is known now, by ${found.seconds.toFixed(1)} s.`;
}

async function enhance(blob) {
  const whose = voice ? { voice } : { self_enroll: $("own").checked };
  const body = form(blob, { ...whose, strength: $("strength").value });
  const after = await (await ask("/enhance", { method: "POST", body })).blob();
  return present(blob, after);
}

async function present(before, after) {
  $("result").hidden = false;
  for (const [name, blob] of [["before", before], ["after", after]]) {
    URL.revokeObjectURL($(name).src);
    $(name).src = $(`${name}-save`).href = URL.createObjectURL(blob);
    const samples = await decode(blob);
    $(`${name}-picture`).hidden = !samples;
    if (samples) drawSpectrogram($(`${name}-picture`), samples);
  }
  return "Done.";
}

// Resolves when the stream has ended, with { before, after, rate, missing }, or throws its reason.
async function live(begun, signal) {
  const before = [];
  const after = [];
  let missing = 0; // samples that were to be played and were not there
  let microphone = null;
  const keep = (blocks, block) => {
    blocks.push(block);
    blocks.size = (blocks.size ?? 0) + block.length;
    while (blocks.size > KEPT_SECONDS * microphone.rate) blocks.size -= blocks.shift().length;
  };
  const header = { voice, self_enroll: !voice && $("own").checked, strength: $("strength").valueAsNumber };
  await stream("/stream", header, signal, {
    begun(answer, opened) {
      microphone = opened;
      begun(answer);
    },
    sent(samples) {
      keep(before, samples);
      showLevel(samples);
    },
    came(frame) {
      if (!(frame instanceof ArrayBuffer)) return;
      const samples = fromPcm(new Int16Array(frame));
      keep(after, samples);
      if ($("play").checked) microphone.play(samples);
    },
    missing(samples) {
      if ($("play").checked) missing += samples;
    },
  });
  return { before: join(before), after: join(after), rate: microphone?.rate, missing };
}

toggle($("live"), async (ended) => {
  const control = new AbortController();
  const running = show($("status"), "Connecting.", async () => {
    const begun = ({ delay_ms, hop_ms }) => {
      $("status").textContent = `Live; the network's delay is ${delay_ms + hop_ms} ms.`;
    };
    const { before, after, rate, missing } = await live(begun, control.signal);
    if (before.length) await present(wav(before, rate), wav(after, rate));
    return missing ? `Done; ${Math.round((1000 * missing) / rate)} ms came too late to be played.` : "Done.";
  });
  running.then(ended);
  return () => control.abort();
});
recording($("record-voice"), $("voice-status"), enrol);
recording($("record-mixture"), $("status"), enhance);
chosen($("voice-file"), $("voice-status"), enrol);
chosen($("mixture-file"), $("status"), enhance);
const showStrength = () => ($("strength-value").textContent = `${Math.round(100 * $("strength").value)} %`);
$("strength").oninput = showStrength;
showStrength(); // a browser may keep what was set before
$("forget").onclick = () =>
  show($("voice-status"), "", async () => {
    const name = voice;
    voice = null;
    $("forget").hidden = true;
    $("own-label").hidden = false;
    await ask(`/voices/${name}`, { method: "DELETE" });
  });
