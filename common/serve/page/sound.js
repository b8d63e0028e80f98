// Sound in a page: a microphone as blocks of samples, WAV files, spectrograms.

const RATE_HZ = 16000;
const BLOCK = 512; // samples of a block; half of what is waited for before the first is played
const REASONS = {
  NotAllowedError: "the microphone was refused; allow it in the browser's settings of this page",
  NotFoundError: "there is no microphone",
  NotReadableError: "the microphone is in use by another program",
};

// { rate, stop(), play(samples) }; `heard` is called with every block, `missing` with the number of
// samples that were not there when they were to be played. Throws an Error with a message.
export async function openMicrophone(heard, missing = () => {}) {
  if (!navigator.mediaDevices) throw new Error("browsers give microphones to https and localhost only");
  let media;
  try {
    media = await navigator.mediaDevices.getUserMedia({
      audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false },
    });
  } catch (error) {
    throw new Error(REASONS[error.name] ?? error.message);
  }
  let context = new AudioContext({ sampleRate: RATE_HZ });
  let source;
  try {
    source = context.createMediaStreamSource(media);
  } catch {
    // Firefox joins only what has one rate.
    await context.close();
    context = new AudioContext();
    source = context.createMediaStreamSource(media);
  }
  await context.audioWorklet.addModule("/shared/worklets.js");
  const options = { processorOptions: { size: BLOCK, prefill: 2 * BLOCK }, outputChannelCount: [1] };
  const capture = new AudioWorkletNode(context, "capture", { ...options, numberOfOutputs: 1 });
  const playback = new AudioWorkletNode(context, "playback", { ...options, numberOfInputs: 0 });
  capture.port.onmessage = ({ data }) => heard(data);
  playback.port.onmessage = ({ data }) => missing(data.missing);
  source.connect(capture);
  capture.connect(context.destination); // it is silent, and runs because of this
  playback.connect(context.destination);
  return {
    rate: context.sampleRate,
    play: (samples) => playback.port.postMessage(samples.slice()),
    async stop() {
      capture.port.onmessage = null;
      media.getTracks().forEach((track) => track.stop());
      await context.close();
    },
  };
}

export function join(blocks) {
  const all = new Float32Array(blocks.reduce((sum, block) => sum + block.length, 0));
  let first = 0;
  for (const block of blocks) {
    all.set(block, first);
    first += block.length;
  }
  return all;
}

export function toPcm(samples) {
  return Int16Array.from(samples, (x) => Math.max(-32768, Math.min(32767, Math.round(x * 32768))));
}

export function fromPcm(pcm) {
  return Float32Array.from(pcm, (x) => x / 32768);
}

// A WAV file of 16 bits as a Blob.
export function wav(samples, rate) {
  const pcm = toPcm(samples);
  const head = new DataView(new ArrayBuffer(44));
  const text = (at, letters) => [...letters].forEach((c, i) => head.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF");
  head.setUint32(4, 36 + pcm.byteLength, true);
  text(8, "WAVEfmt ");
  head.setUint32(16, 16, true);
  head.setUint16(20, 1, true);
  head.setUint16(22, 1, true);
  head.setUint32(24, rate, true);
  head.setUint32(28, 2 * rate, true);
  head.setUint16(32, 2, true);
  head.setUint16(34, 16, true);
  text(36, "data");
  head.setUint32(40, pcm.byteLength, true);
  return new Blob([head, pcm], { type: "audio/wav" });
}

// Samples at RATE_HZ of a file that this browser decodes, one channel; null for others.
export async function decode(blob) {
  try {
    const context = new OfflineAudioContext(1, 1, RATE_HZ);
    return (await context.decodeAudioData(await blob.arrayBuffer())).getChannelData(0);
  } catch {
    return null;
  }
}

export function level(samples) {
  return Math.sqrt(samples.reduce((sum, x) => sum + x * x, 0) / samples.length);
}

// Time to the right, frequency upwards to half the rate, 80 dB from black to white.
export function drawSpectrogram(canvas, samples) {
  const size = 512;
  const width = (canvas.width = 640);
  const height = (canvas.height = size / 2);
  const graphics = canvas.getContext("2d");
  const image = graphics.createImageData(width, height);
  const hann = Float32Array.from({ length: size }, (_, i) => Math.sin((Math.PI * (i + 0.5)) / size) ** 2);
  const real = new Float32Array(size);
  const imag = new Float32Array(size);
  for (let x = 0; x < width; x++) {
    const first = Math.round((x * Math.max(0, samples.length - size)) / (width - 1));
    for (let i = 0; i < size; i++) real[i] = (samples[first + i] ?? 0) * hann[i];
    imag.fill(0);
    transform(real, imag);
    for (let k = 0; k < height; k++) {
      const db = 10 * Math.log10(real[k] ** 2 + imag[k] ** 2 + 1e-9);
      const value = Math.max(0, Math.min(1, (db + 50) / 80));
      const at = 4 * ((height - 1 - k) * width + x);
      image.data.set([255 * value ** 0.7, 255 * value ** 1.6, 255 * (0.25 + 0.4 * value) * Math.min(1, 4 * value), 255], at);
    }
  }
  graphics.putImageData(image, 0, 0);
}

// The discrete Fourier transform in place, of a power of two.
function transform(real, imag) {
  const size = real.length;
  for (let i = 1, j = 0; i < size; i++) {
    let bit = size >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      [real[i], real[j]] = [real[j], real[i]];
      [imag[i], imag[j]] = [imag[j], imag[i]];
    }
  }
  for (let length = 2; length <= size; length *= 2) {
    for (let k = 0; k < length / 2; k++) {
      const c = Math.cos((2 * Math.PI * k) / length);
      const s = -Math.sin((2 * Math.PI * k) / length);
      for (let i = k; i < size; i += length) {
        const j = i + length / 2;
        const re = real[j] * c - imag[j] * s;
        const im = real[j] * s + imag[j] * c;
        real[j] = real[i] - re;
        imag[j] = imag[i] - im;
        real[i] += re;
        imag[i] += im;
      }
    }
  }
}
