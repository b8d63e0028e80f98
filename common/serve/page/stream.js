// What the microphone hears, sent to a websocket of this server.

import { token, wantToken } from "/shared/client.js";
import { fromPcm, openMicrophone, toPcm } from "/shared/sound.js";

const BEHIND_SECONDS = 2; // of sound that was not sent yet, beyond which the way is too slow

// Sends from the server's first answer on until `signal` aborts. Resolves when the websocket has
// ended, or throws its reason. `on` has functions:
//   begun(answer, microphone): the first one; only then the others
//   sent(samples): as the server has them
//   came(frame): an object, or an ArrayBuffer
//   missing(samples): how many were not there when they were to be played
export async function stream(path, header, signal, on) {
  let socket = null;
  let ready = false;
  const microphone = await openMicrophone(
    (block) => {
      if (!ready) return;
      const pcm = toPcm(block);
      if (socket.bufferedAmount > 2 * BEHIND_SECONDS * microphone.rate) {
        socket.close(4000, "too slow: the way to the server does not keep up");
      } else {
        socket.send(pcm);
      }
      on.sent?.(fromPcm(pcm));
    },
    (samples) => {
      if (ready) on.missing?.(samples);
    },
  );
  try {
    if (signal.aborted) return;
    await new Promise((resolve, reject) => {
      socket = new WebSocket(`${location.origin.replace("http", "ws")}${path}`);
      socket.binaryType = "arraybuffer";
      const form = { rate: microphone.rate, format: "pcm16" };
      socket.onopen = () => socket.send(JSON.stringify({ ...form, ...header, ...(token() && { token: token() }) }));
      let begun = false;
      let message = null;
      socket.onmessage = ({ data }) => {
        const frame = typeof data === "string" ? JSON.parse(data) : data;
        if (frame.error) message = frame.error;
        else if (begun) on.came?.(frame);
        else {
          begun = true;
          ready = !signal.aborted;
          on.begun(frame, microphone);
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
}
