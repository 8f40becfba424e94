// Node: fetch as it comes; its http module with an offer to upgrade, which fetch doesn't make.
import http from "node:http";

const [url, how, ...calls] = process.argv.slice(2);

async function byFetch(path, body) {
  const answer = await fetch(url + path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    ...(how === "chunked"
      ? { duplex: "half", body: new Blob([body]).stream() }
      : { body }),
  });
  return [answer.status, await answer.text()];
}

function byHttp(path, body) {
  const headers = {
    "content-type": "application/json",
    connection: "Upgrade, HTTP2-Settings",
    upgrade: "h2c",
    "http2-settings": "AAMAAABkAAQAAP__",
  };
  return new Promise((resolve, reject) => {
    const request = http.request(url + path, { method: "POST", headers }, (answer) => {
      let text = "";
      answer.on("data", (part) => (text += part));
      answer.on("end", () => resolve([answer.statusCode, text]));
    });
    request.on("error", reject);
    request.end(body);
  });
}

for (let i = 0; i < calls.length; i += 2) {
  const [status, text] = await (how === "upgrade" ? byHttp : byFetch)(calls[i], calls[i + 1]);
  console.log(status, "node", text);
}
