// Classifies texts with an exported ONNX model: node classify.mjs ARTIFACT TEXT...
//
// ARTIFACT is exports/onnx/NAME/VERSION with a tokenizer/tokenizer.json. For a model that reads pairs, each TEXT is two
// texts separated by a tab.
//   ONNXRUNTIME_NODE_INSTALL=skip npm install onnxruntime-node @huggingface/tokenizers

import { readFile } from "node:fs/promises";
import { Tokenizer } from "@huggingface/tokenizers";
import ort from "onnxruntime-node";

const [folder, ...texts] = process.argv.slice(2);
const read = async (name) => JSON.parse(await readFile(`${folder}/${name}`, "utf8"));
const manifest = await read("manifest.json");
const several = manifest.problem_type === "multi_label_classification";
const classifies = several || manifest.problem_type === "single_label_classification";
if (!classifies || manifest.model.heads.length > 1) throw new Error(`${folder} is not a classifier, or has other heads as well`);
const pairs = manifest.texts.length === 2;
const tokenizer = new Tokenizer(
  await read("tokenizer/tokenizer.json"),
  await read("tokenizer/tokenizer_config.json"),
);
const session = await ort.InferenceSession.create(`${folder}/model.onnx`);

for (const text of texts) {
  const [first, ...rest] = text.split("\t");
  const second = rest.length ? rest.join("\t") : undefined;
  if (pairs !== (second !== undefined)) throw new Error(`${folder} reads ${pairs ? "pairs separated by a tab" : "single texts without tabs"}: ${text}`);
  const encoded = tokenizer.encode(first, { text_pair: second ?? null, return_token_type_ids: true });
  const length = encoded.ids.length;
  if (length > manifest.options.sequence_length) throw new Error(`${length} tokens exceed the model's maximum of ${manifest.options.sequence_length}: ${text}`);
  const columns = {
    input_ids: encoded.ids,
    attention_mask: encoded.attention_mask,
    token_type_ids: encoded.token_type_ids ?? Array(length).fill(0),
  };
  const feeds = Object.fromEntries(
    session.inputNames.map((name) => [
      name,
      new ort.Tensor("int64", BigInt64Array.from(columns[name], BigInt), [1, length]),
    ]),
  );
  const logits = Array.from((await session.run(feeds)).logits.data);
  const best = logits.indexOf(Math.max(...logits));
  const sum = logits.map((x) => Math.exp(x - logits[best])).reduce((a, b) => a + b);
  const score = several ? 1 / (1 + Math.exp(-logits[best])) : 1 / sum;
  console.log(`${manifest.labels[best]}\t${score.toFixed(4)}\t${text}`);
}
