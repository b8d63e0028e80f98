// Enrol a voice; hear it out of a recording, or live.

import { ask, show, token, wantToken } from "/shared/client.js";
import { decode, drawSpectrogram, fromPcm, join, level, openMicrophone, toPcm, wav } from "/shared/sound.js";

const $ = (id) => document.getElementById(id);
const KEPT_SECONDS = 60; // of a live stream, to be heard again
const BEHIND_SECONDS = 2; // of sound that was not sent yet, beyond which the way is too slow
let voice = null; // the server's name of it

async function enrol(blob) {
  const body = new FormData();
  body.append("file", blob, blob.name ?? "recording.wav");
  const found = await (await ask("/voices", { method: "POST", body })).json();
  voice = found.voice;
  $("forget").hidden = false;
  $("own-label").hidden = true;
  return `This voice is known now, by ${found.seconds.toFixed(1)} s.`;
}

async function enhance(blob) {
  const body = new FormData();
  body.append("file", blob, blob.name ?? "recording.wav");
  if (voice) body.append("voice", voice);
  else body.append("self_enroll", $("own").checked);
  body.append("strength", $("strength").value);
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

// A button that starts something and stops it when it is pressed again.
function toggle(button, start) {
  const label = button.textContent;
  let stop = null;
  button.onclick = async () => {
    if (stop) {
      button.disabled = true;
      return stop();
    }
    const others = [...document.querySelectorAll("button, input[type=file], input[type=range]")].filter((one) => one !== button);
    let over = false;
    const ended = () => {
      over = true;
      stop = null;
      button.disabled = false;
      button.textContent = label;
      button.setAttribute("aria-pressed", "false");
      others.forEach((one) => (one.disabled = false));
      $("level").value = 0;
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

function recording(button, place, use) {
  toggle(button, async (ended) => {
    const blocks = [];
    let microphone = null;
    await show(place, "", async () => {
      microphone = await openMicrophone((block) => {
        blocks.push(block);
        $("level").value = level(block);
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

// Resolves when the websocket has ended, with { before, after, rate, missing }, or throws its reason.
async function stream(begun, signal) {
  const before = [];
  const after = [];
  let missing = 0; // samples that were to be played and were not there
  let socket = null;
  let ready = false;
  let rate = 0;
  const keep = (blocks, block) => {
    blocks.push(block);
    blocks.size = (blocks.size ?? 0) + block.length;
    while (blocks.size > KEPT_SECONDS * rate) blocks.size -= blocks.shift().length;
  };
  const microphone = await openMicrophone(
    (block) => {
      if (!ready) return;
      const pcm = toPcm(block);
      if (socket.bufferedAmount > 2 * BEHIND_SECONDS * rate) {
        socket.close(4000, "too slow: the way to the server does not keep up");
      } else {
        socket.send(pcm);
      }
      keep(before, fromPcm(pcm));
      $("level").value = level(block);
    },
    (samples) => {
      if (ready && $("play").checked) missing += samples;
    },
  );
  rate = microphone.rate;
  try {
    await new Promise((resolve, reject) => {
      socket = new WebSocket(`${location.origin.replace("http", "ws")}/stream`);
      socket.binaryType = "arraybuffer";
      socket.onopen = () => socket.send(JSON.stringify({ rate, format: "pcm16", voice, self_enroll: !voice && $("own").checked, strength: $("strength").valueAsNumber, ...(token() && { token: token() }) }));
      let message = null;
      socket.onmessage = ({ data }) => {
        if (typeof data !== "string") {
          const samples = fromPcm(new Int16Array(data));
          keep(after, samples);
          if ($("play").checked) microphone.play(samples);
          return;
        }
        const said = JSON.parse(data);
        message = said.error ?? message;
        if ("delay_ms" in said) {
          ready = true;
          begun(said);
        }
      };
      socket.onclose = ({ code, reason }) => {
        ready = false;
        if (code === 4401) wantToken();
        if (code === 1000) resolve();
        else reject(new Error(message || reason || `the stream broke off (${code})`));
      };
      signal.addEventListener("abort", () => {
        if (ready) socket.send('{"end": true}');
        else socket.close(1000);
        ready = false;
      });
    });
  } finally {
    await microphone.stop();
  }
  return { before: join(before), after: join(after), rate, missing };
}

toggle($("live"), async (ended) => {
  const control = new AbortController();
  const running = show($("status"), "Connecting.", async () => {
    const begun = ({ delay_ms, hop_ms }) => {
      $("status").textContent = `Live; the network's delay is ${delay_ms + hop_ms} ms.`;
    };
    const { before, after, rate, missing } = await stream(begun, control.signal);
    if (before.length) await present(wav(before, rate), wav(after, rate));
    return missing ? `Done; ${Math.round((1000 * missing) / rate)} ms came too late to be played.` : "Done.";
  });
  running.then(ended);
  return () => control.abort();
});
recording($("record-voice"), $("voice-status"), enrol);
recording($("record-mixture"), $("status"), enhance);
for (const [input, place, use] of [
  [$("voice-file"), $("voice-status"), enrol],
  [$("mixture-file"), $("status"), enhance],
]) {
  input.onchange = async () => {
    const [file] = input.files;
    if (file) await show(place, "Sending.", () => use(file));
    input.value = ""; // so that the same file can be chosen again
  };
}
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
