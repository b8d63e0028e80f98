// A list of the routes in /openapi.json.

const api = await (await fetch("/openapi.json")).json();
document.title = document.querySelector("h1").textContent = api.info.title;
document.querySelector("pre").textContent = api.info.description;
const rows = document.querySelector("tbody");
for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, about] of Object.entries(methods)) {
    const row = rows.insertRow();
    const fields = Object.values(about.requestBody?.content ?? {}).flatMap(({ schema }) => {
      const found = api.components.schemas[schema.$ref?.split("/").pop()] ?? schema;
      return Object.keys(found.properties ?? {}).map((name) =>
        found.required?.includes(name) ? name : `[${name}]`,
      );
    });
    for (const text of [method.toUpperCase(), path, fields.join(", "), about.description]) {
      row.insertCell().textContent = text;
    }
  }
}
