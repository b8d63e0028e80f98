// Asking the server that sent this page, with the token where it wants one.

const field = document.querySelector("#token");

export function token() {
  return field.querySelector("input").value;
}

export function wantToken() {
  field.hidden = false;
  field.querySelector("input").focus();
}

// The answer, or an Error with the server's message.
export async function ask(path, options = {}) {
  const headers = token() ? { Authorization: `Bearer ${token()}` } : {};
  const answer = await fetch(path, { ...options, headers }).catch(() => {
    throw new Error("the server does not answer");
  });
  if (answer.ok) return answer;
  if (answer.status === 401) wantToken();
  throw new Error((await answer.json().catch(() => ({}))).detail ?? `the server says ${answer.status}`);
}

// Shows in `place` what `work` does: `busy` meanwhile, then the text that it returns or its error.
export async function show(place, busy, work) {
  place.classList.remove("bad");
  place.textContent = busy;
  try {
    place.textContent = (await work()) ?? "";
  } catch (error) {
    place.classList.add("bad");
    place.textContent = error.message;
  }
}
