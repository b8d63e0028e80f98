// The words of a recording in the voice of a picture, or of another recording.

import { ask, show } from "/shared/client.js";
import { chosen, form, recording } from "/shared/controls.js";

const $ = (id) => document.getElementById(`words-${id}`);
let words = null; // the recording that is said anew
let who = null; // { face } or { voice }, a file
let asked = 0; // times; what was asked for last is heard

function put(name, blob) {
  URL.revokeObjectURL($(name).src);
  $(name).src = URL.createObjectURL(blob);
  $(name).hidden = false;
}

async function made(body) {
  return (await ask("/said", { method: "POST", body })).blob();
}

async function say() {
  const mine = ++asked;
  $("said").pause();
  $("result").hidden = true;
  if (!words) return "Now the words.";
  if (!who) return "Now whose voice it is to be.";
  const said = await made(form(words, who)).catch((error) => {
    if (mine === asked) throw error;
  });
  if (mine !== asked) return $("status").textContent; // of what was asked for since
  put("said", said);
  $("save").href = $("said").src;
  $("result").hidden = false;
  return "";
}

function sayWords(blob) {
  words = blob;
  put("source", blob);
  $("before").hidden = false;
  return say();
}

function sayLike(kind, blob) {
  who = { [kind]: blob };
  $("sample").pause();
  $("picture").hidden = $("sample").hidden = true;
  put(kind === "face" ? "picture" : "sample", blob);
  $("who").hidden = false;
  return say();
}

chosen($("file"), $("status"), sayWords);
recording($("record"), $("status"), sayWords);
chosen($("face"), $("status"), (file) => sayLike("face", file));
chosen($("voice"), $("status"), (file) => sayLike("voice", file));
recording($("record-voice"), $("status"), (blob) => sayLike("voice", blob));
