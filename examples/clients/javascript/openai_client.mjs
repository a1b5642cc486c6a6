// OpenAI's own JavaScript client: ask, stream, and say whether the answer was right. `npm install openai`.
import OpenAI from "openai";

const question = process.argv.slice(2).join(" ") || "please refund the money for order 7";
const client = new OpenAI({
  baseURL: process.env.SMOA_GATEWAY_URL ?? "http://127.0.0.1:8080/v1",
  apiKey: process.env.SMOA_KEY ?? "none",
});
const messages = [{ role: "user", content: question }];

const answer = await client.chat.completions.create({ model: "smoa-auto", messages, max_tokens: 12 });
console.log("answer:", answer.choices[0].message.content);
console.log("adapters:", answer.smoa.adapters.map((one) => `${one.name} ${one.weight.toFixed(2)}`).join(", ") || "none");

const stream = await client.chat.completions.create({ model: "smoa-auto", messages, max_tokens: 12, stream: true });
let text = "";
for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
console.log("streamed:", text);

if (answer.smoa.adapters.length) {
  await client.post("/feedback", { body: { id: answer.id, success: true } });
  console.log("reported");
}
