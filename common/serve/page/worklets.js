// Two ends of a stream, on the audio thread: samples in blocks, and blocks as samples.

class Capture extends AudioWorkletProcessor {
  constructor(options) {
    super();
    this.size = options.processorOptions.size;
    this.block = new Float32Array(this.size);
    this.filled = 0;
  }

  process([[channel]]) {
    for (const sample of channel ?? []) {
      this.block[this.filled++] = sample;
      if (this.filled === this.size) {
        this.port.postMessage(this.block, [this.block.buffer]);
        this.block = new Float32Array(this.size);
        this.filled = 0;
      }
    }
    return true;
  }
}

class Playback extends AudioWorkletProcessor {
  constructor(options) {
    super();
    this.prefill = options.processorOptions.prefill; // samples before it begins, and after a gap
    this.blocks = [];
    this.waiting = 0;
    this.first = 0; // of the first block
    this.begun = false; // once
    this.runs = false; // now
    this.port.onmessage = ({ data }) => {
      this.blocks.push(data);
      this.waiting += data.length;
    };
  }

  process(inputs, [[channel]]) {
    this.runs ||= this.waiting >= this.prefill;
    this.begun ||= this.runs;
    let i = 0;
    for (; this.runs && i < channel.length; i++) {
      if (!this.waiting) {
        this.runs = false;
        break;
      }
      channel[i] = this.blocks[0][this.first++];
      this.waiting--;
      if (this.first === this.blocks[0].length) {
        this.blocks.shift();
        this.first = 0;
      }
    }
    if (this.begun && i < channel.length) this.port.postMessage({ missing: channel.length - i });
    return true;
  }
}

registerProcessor("capture", Capture);
registerProcessor("playback", Playback);
