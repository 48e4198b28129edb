// Asks the server that shows this page, one photo after another, in the way that page.js expects of its worker.
const here = (path) => new URL(`../${path}`, import.meta.url).href;

async function fetched(path, options = {}) {
  const response = await fetch(here(path), options);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

const loaded = fetched("model");
loaded.then(
  ({ classes, rejects }) => postMessage({ classes, rejects, privacy: "Photos are sent to this server and are not stored." }),
  (error) => postMessage({ failure: error.message }),
);
self.onmessage = async ({ data: file }) => {
  try {
    const { classes } = await loaded;
    const body = new FormData();
    body.append("files", file);
    const [answer] = (await fetched("predict", { method: "POST", body })).predictions;
    if (answer.error) throw new Error(answer.error);
    const probabilities = classes.map((name) => answer.probabilities[name]);
    postMessage({ preview: file, probabilities, strangeness: answer.strangeness, isRejected: answer.rejected });
  } catch (error) {
    postMessage({ reason: error.message || String(error) });
  }
};
