// Voices for the face of a picture.

import { ask, show } from "/shared/client.js";
import { chosen, form } from "/shared/controls.js";

const $ = (id) => document.getElementById(`face-${id}`);
let face = null; // the picture that the voices are of
let asked = 0; // times; what was asked for last is heard

async function make(picture) {
  const mine = ++asked;
  const body = form(picture, { count: $("count").value, seed: Number.parseInt($("seed").value, 10) || 0 });
  const voices = await (await ask("/voices", { method: "POST", body })).blob();
  if (mine !== asked) return "";
  for (const [name, blob] of [["voices", voices], ["picture", picture]]) {
    URL.revokeObjectURL($(name).src);
    $(name).src = URL.createObjectURL(blob);
  }
  $("save").href = $("voices").src;
  $("result").hidden = $("others").disabled = false;
  face = picture;
  return "";
}

function makeAgain() {
  if (face) show($("status"), "Working.", () => make(face));
}

chosen($("file"), $("status"), make);
$("count").onchange = $("seed").onchange = makeAgain;
$("others").onclick = () => {
  $("seed").value = Math.floor(Math.random() * 2 ** 31);
  makeAgain();
};
