// Continues a prompt with an exported ONNX decoder: node generate.mjs ARTIFACT PROMPT [--temperature=0.8 --top_k=40]
//
// ARTIFACT is exports/onnx/NAME/VERSION with a tokenizer/tokenizer.json. The graph reads the prompt in one pass; after
// that each step reads one token and the keys and values of those before it.
//   ONNXRUNTIME_NODE_INSTALL=skip npm install onnxruntime-node @huggingface/tokenizers

import { readFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { Tokenizer } from "@huggingface/tokenizers";
import ort from "onnxruntime-node";

const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    max_new_tokens: { type: "string", default: "64" },
    temperature: { type: "string", default: "0" }, // 0 chooses the likeliest token.
    top_k: { type: "string", default: "0" }, // Sample from this many of the likeliest tokens; 0: all.
    ids: { type: "boolean", default: false }, // Print the new tokens' ids instead of the text.
  },
});
const [folder, prompt] = positionals;
const [temperature, topK] = [Number(flags.temperature), Number(flags.top_k)];
const read = async (name) => JSON.parse(await readFile(`${folder}/${name}`, "utf8"));
const manifest = await read("manifest.json");
const tokenizer = new Tokenizer(
  await read("tokenizer/tokenizer.json"),
  await read("tokenizer/tokenizer_config.json"),
);
const session = await ort.InferenceSession.create(`${folder}/model.onnx`);

const choose = (logits) => {
  if (!temperature) return logits.indexOf(logits.reduce((a, b) => Math.max(a, b)));
  const likeliest = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a]);
  const kept = likeliest.slice(0, topK || likeliest.length);
  const chances = kept.map((id) => Math.exp((logits[id] - logits[kept[0]]) / temperature));
  let left = Math.random() * chances.reduce((a, b) => a + b);
  const at = chances.findIndex((chance) => (left -= chance) < 0);
  return kept[Math.max(0, at)];
};

const int64 = (numbers) => new ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), [1, numbers.length]);
const prompted = tokenizer.encode(prompt).ids;
const most = Math.min(Number(flags.max_new_tokens), manifest.options.sequence_length - prompted.length);
if (!prompted.length || most < 1) throw new Error(`a prompt of ${prompted.length} tokens cannot be continued`);

const shapes = manifest.signatures.model.inputs;
const feeds = {};
for (const name of session.inputNames.filter((name) => name.startsWith("past"))) {
  const [, heads, , size] = shapes[name].shape;
  feeds[name] = new ort.Tensor("float32", new Float32Array(0), [1, heads, 0, size]);
}
const ends = [manifest.generation.eos_token_id].flat(); // One, several or none.
const ids = [...prompted];
let seen = 0;
do {
  feeds.input_ids = int64(ids.slice(seen));
  if ("position_ids" in shapes) feeds.position_ids = int64([...ids.keys()].slice(seen));
  feeds.attention_mask = int64(ids.map(() => 1));
  seen = ids.length;
  const outputs = await session.run(feeds);
  for (const name of Object.keys(feeds).filter((name) => name.startsWith("past")))
    feeds[name] = outputs[name.replace("past_key_values", "present")];
  const vocab = outputs.logits.dims[2];
  ids.push(choose(outputs.logits.data.slice(-vocab)));
} while (ids.length < prompted.length + most && !ends.includes(ids.at(-1)));

const written = ids.slice(prompted.length);
console.log(flags.ids ? written.join(" ") : tokenizer.decode(ids, { skip_special_tokens: true }));
