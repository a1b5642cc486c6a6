// One forward step of a model of Llama's kind for a batch in which every sequence has its own mixture of adapters.
//
// The rule that everything here keeps: the arithmetic of one token never depends on what else is in the batch. Every sum runs in one
// fixed order, whatever the number of rows, the chunking of the prompt or the place in the cache. So a sequence's output is the same,
// bit for bit, alone and in any batch.
//
// Weights are packed in panels of PANEL * LANES outputs: panel, input pair, output, the two of the pair (float32 has no pairs). The
// plain C interface at the end is what `backend.py` calls; the structs are mirrored there, field by field.
#include <cmath>
#include <limits>

#include "linear.h"

namespace {

// The rest of the arithmetic, for one step. Each thread has a Step of its own: they share the scratch memory and the loops over it, and
// nothing that changes from layer to layer.
template <class E>
struct Step {
    using T = typename E::T;
    const Model& model;
    const Batch& batch;
    Team& team;
    int layer = 0;
    int width;  // of q, k and v together
    // Scratch, [tokens, ...]:
    float *stream, *branch, *qkv, *gated, *scores;
    T *x, *query, *attended, *inner, *last, *mixed[MODULES];
    bool uses_core[MODULES], uses_pairs[MODULES];

    Step(const Model& model, const Batch& batch, Team& team) : model(model), batch(batch), team(team) {
        width = (model.heads + 2 * model.kv_heads) * model.head_dim;
        char* free = static_cast<char*>(batch.scratch);
        auto take = [&](auto*& pointer, int64_t count) {
            pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(free);
            free += (count * sizeof(*pointer) + 63) / 64 * 64;
        };
        auto padded = [](int64_t count) { return (count + 31) / 32 * 32; };  // matrix registers read whole groups of tokens
        int64_t tokens = padded(batch.tokens), heads = int64_t(model.heads) * model.head_dim;
        take(stream, tokens * model.hidden);
        take(branch, model.apart ? tokens * model.hidden : 0);
        take(qkv, tokens * width);
        take(gated, tokens * 2 * model.intermediate);
        take(x, tokens * model.hidden);
        take(query, tokens * heads);
        take(attended, tokens * heads);
        take(inner, tokens * model.intermediate);
        take(last, padded(batch.outputs) * model.hidden);
        for (auto& each : mixed) take(each, tokens * MATRIX_INPUTS);
        take(scores, int64_t(team.size) * model.heads * batch.context);
        bytes = free - static_cast<char*>(batch.scratch);
    }
    int64_t bytes;

    const Mixture* mixture(int token) const { return batch.sequences[batch.sequence[token]].mixture; }

    // Which modules of this layer any row adapts: the others cost nothing.
    void find_uses(int of_layer) {
        layer = of_layer;
        for (int module = 0; module < MODULES; module++) uses_core[module] = uses_pairs[module] = false;
        for (int token = 0; token < batch.tokens; token++) {
            const Mixture* one = mixture(token);
            if (!one || (token && one == mixture(token - 1))) continue;
            for (int module = 0; module < MODULES; module++) {
                int site = layer * MODULES + module;
                uses_core[module] |= one->core && one->core[site];
                uses_pairs[module] |= one->first && one->first[site] < one->first[site + 1];
            }
        }
    }

    // mixed = core V^T x: what the U S product of `module` takes, for the tokens first..last of input [tokens, inputs].
    void mix(Module module, const T* input, int first, int last) {
        if (!uses_core[module]) return;
        const Linear& linear = model.layer[layer].linear[module];
        tiles<E>(first, last, [&](auto rows, int token, int count) {
            constexpr int MR = decltype(rows)::value;
            Vector sum[MR][1];
            products<E, MR, 1>(sum, {Term<E>{static_cast<const T*>(linear.right), linear.inputs, input + int64_t(token) * linear.inputs,
                                             linear.inputs}});
            for (int m = 0; m < count; m++) {
                const Mixture* one = mixture(token + m);
                const float* core = one && one->core ? one->core[layer * MODULES + module] : nullptr;
                Vector out = {};
                if (core)
                    for (int k = 0; k < RANK; k++) out = multiply_add(load(core + k * RANK), splat(sum[m][0][k]), out);
                float values[MATRIX_INPUTS] = {};  // what is past RANK meets weights of zero, and must be finite for it
                store(values, out);
                narrow<E>(mixed[module] + int64_t(token + m) * MATRIX_INPUTS, values, MATRIX_INPUTS);
            }
        });
    }

    // The adapters that `add_pairs` will read, on their way to the cache while the weights of the module stream through: small pieces in
    // many places, which would else be waited for one by one.
    void prefetch_pairs(Module module, int first, int last) const {
        if (!uses_pairs[module]) return;
        const Linear& linear = model.layer[layer].linear[module];
        int site = layer * MODULES + module;
        for (int token = first; token < last; token++) {
            const Mixture* one = mixture(token);
            if (!one || !one->first || (token > first && one == mixture(token - 1))) continue;
            for (int p = one->first[site]; p < one->first[site + 1]; p++) {
                const Pair& pair = one->pair[p];
                prefetch(pair.a, int64_t(pair.rank) * linear.inputs * sizeof(T));
                prefetch(pair.b, int64_t(pair.rank) * linear.outputs * sizeof(T));
            }
        }
    }
    static void prefetch(const void* from, int64_t bytes) {
        for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(from) + at, 0, 2);
    }

    // y += sum_i weight_i B_i A_i x of one token: its `lora` adapters at `module`.
    void add_pairs(Module module, int token, const T* input, float* y) const {
        if (!uses_pairs[module]) return;
        const Mixture* one = mixture(token);
        if (!one || !one->first) return;
        const Linear& linear = model.layer[layer].linear[module];
        int site = layer * MODULES + module;
        for (int p = one->first[site]; p < one->first[site + 1]; p++) {
            const Pair& pair = one->pair[p];
            const T *a = static_cast<const T*>(pair.a), *b = static_cast<const T*>(pair.b);
            int rank = 0;
            for (; rank + 4 <= pair.rank; rank += 4) add_ranks<4>(linear, a, b, rank, pair.weight, input, y);
            for (; rank + 2 <= pair.rank; rank += 2) add_ranks<2>(linear, a, b, rank, pair.weight, input, y);
            for (; rank < pair.rank; rank++) add_ranks<1>(linear, a, b, rank, pair.weight, input, y);
        }
    }
    template <int R>
    void add_ranks(const Linear& linear, const T* a, const T* b, int rank, float weight, const T* input, float* y) const {
        a += int64_t(rank) * linear.inputs;
        b += int64_t(rank) * linear.outputs;
        Vector sum[R] = {};
        float dot[R];
        int k = 0;
        for (; k + LANES * E::PAIR <= linear.inputs; k += LANES * E::PAIR)
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) sum[r] = E::dot(sum[r], a + int64_t(r) * linear.inputs + k, input + k);
        for (int r = 0; r < R; r++) {
            dot[r] = total(sum[r]);
            for (int i = k; i < linear.inputs; i++) dot[r] = __builtin_fmaf(E::to(a[int64_t(r) * linear.inputs + i]), E::to(input[i]), dot[r]);
            dot[r] *= weight;
        }
        for (k = 0; k + LANES <= linear.outputs; k += LANES) {
            Vector out = load(y + k);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) out = multiply_add(E::widen(b + int64_t(r) * linear.outputs + k), splat(dot[r]), out);
            store(y + k, out);
        }
        for (; k < linear.outputs; k++)
            for (int r = 0; r < R; r++) y[k] = __builtin_fmaf(E::to(b[int64_t(r) * linear.outputs + k]), dot[r], y[k]);
    }

    // Root mean square norm (arXiv 1910.07467) of count numbers.
    void norm(const float* from, const float* weight, int count, float* to) const {
        Vector sum = {};
        int k = 0;
        for (; k + LANES <= count; k += LANES) sum = multiply_add(load(from + k), load(from + k), sum);
        float squares = total(sum);
        for (; k < count; k++) squares = __builtin_fmaf(from[k], from[k], squares);
        float scale = 1.0f / std::sqrt(squares / count + model.epsilon);
        for (k = 0; k < count; k++) to[k] = from[k] * scale * weight[k];
    }
    void norm_to(const float* from, const float* weight, T* to) const {
        float wide[model.hidden];
        norm(from, weight, model.hidden, wide);
        narrow<E>(to, wide, model.hidden);
    }

    void embed(int token) {
        constexpr int WIDTH = PANEL * LANES;
        int id = batch.id[token];
        const T* panel = static_cast<const T*>(model.embedding) + int64_t(id / WIDTH) * model.hidden * WIDTH;
        // Within a panel: input pair, vector of outputs, output, member of the pair.
        for (int k = 0; k < model.hidden; k++)
            stream[int64_t(token) * model.hidden + k] =
                E::to(panel[(int64_t(k / E::PAIR) * WIDTH + id % WIDTH) * E::PAIR + k % E::PAIR]) * model.embedding_scale;
    }

    T* block(int token, int index, int kv_head) const {
        int64_t number = batch.sequences[batch.sequence[token]].blocks[index];
        int64_t size = int64_t(2) * BLOCK * model.head_dim;
        return static_cast<T*>(batch.cache) + ((layer * batch.blocks + number) * model.kv_heads + kv_head) * size;
    }

    // Rotary position embedding (arXiv 2104.09864) of the leading dimensions, halves layout, in place.
    void rotate(const Layer& weights, float* head, int position) const {
        int half = model.rotary / 2;
        const float *cosine = weights.cosine + int64_t(position) * half, *sine = weights.sine + int64_t(position) * half;
        for (int i = 0; i < half; i++) {
            float first = head[i], second = head[i + half];
            head[i] = first * cosine[i] - second * sine[i];
            head[i + half] = second * cosine[i] + first * sine[i];
        }
    }

    // Adapters, norms and rotation of q, k and v; keys and values go to the cache.
    void after_qkv(int token) {
        const Layer& weights = model.layer[layer];
        int size = model.head_dim, position = batch.position[token];
        float *q = qkv + int64_t(token) * width, *k = q + model.heads * size, *v = k + model.kv_heads * size;
        const T* input = x + int64_t(token) * model.hidden;
        add_pairs(Q, token, input, q);
        add_pairs(K, token, input, k);
        add_pairs(V, token, input, v);
        for (int head = 0; head < model.heads + model.kv_heads; head++) {
            const float* weight = head < model.heads ? weights.query_norm : weights.key_norm;
            if (weight) norm(q + head * size, weight, size, q + head * size);
            if (weights.cosine) rotate(weights, q + head * size, position);
        }
        for (int i = 0; i < model.heads * size; i++) query[int64_t(token) * model.heads * size + i] = E::from(q[i] * model.scale);
        for (int head = 0; head < model.kv_heads; head++) {
            T *keys = block(token, position / BLOCK, head), *values = keys + BLOCK * size;
            int lane = position % BLOCK;
            for (int i = 0; i < size; i++) keys[(i / E::PAIR * BLOCK + lane) * E::PAIR + i % E::PAIR] = E::from(k[head * size + i]);
            narrow<E>(values + lane * size, v + head * size, size);
        }
    }

    // Attention of G query heads, which share one key/value head, from one token to all before it. Scores, then softmax, then values.
    template <int G, int NV>
    void attend_heads(int token, int kv_head, int head, float* scores) const {
        int size = model.head_dim, position = batch.position[token], end = position / BLOCK + 1;
        int window = int(model.layer[layer].window), start = window > 0 && position >= window ? (position - window + 1) / BLOCK : 0;
        const T* q = query + (int64_t(token) * model.heads + head) * size;
        Vector largest[G], sum[G] = {};
        for (auto& each : largest) each = splat(-std::numeric_limits<float>::infinity());
        for (int index = start; index < end; index++) {
            const T* keys = block(token, index, kv_head);
            Vector dot[G] = {};
            for (int i = 0; i < size; i += E::PAIR) {
                typename E::Packed key = E::packed(keys + i * BLOCK);
#pragma GCC unroll 4
                for (int g = 0; g < G; g++) dot[g] = E::add(dot[g], key, E::factor(q + g * size + i));
            }
            Integers at = Integers{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + index * BLOCK;
            Integers hidden = at > position;
            if (window > 0) hidden |= at <= position - window;
            if (model.soft_cap > 0)
                for (int g = 0; g < G; g++) dot[g] = soft_capped(dot[g], model.soft_cap);
            for (int g = 0; g < G; g++) {
                dot[g] = hidden ? splat(-std::numeric_limits<float>::infinity()) : dot[g];
                largest[g] = larger(dot[g], largest[g]);
                store(scores + g * batch.context + index * BLOCK, dot[g]);
            }
        }
        for (int g = 0; g < G; g++) {
            float top = largest[g][0];
            for (int i = 1; i < LANES; i++) top = top > largest[g][i] ? top : largest[g][i];
            for (int index = start; index < end; index++) {
                float* part = scores + g * batch.context + index * BLOCK;
                Vector value = load(part), weight = exponential(value - splat(top));
                weight = value == splat(-std::numeric_limits<float>::infinity()) ? Vector{} : weight;
                sum[g] += weight;
                store(part, weight);
            }
        }
        for (int column = 0; column < size; column += NV * LANES) {
            Vector out[G][NV] = {};
            for (int index = start; index < end; index++) {
                const T* values = block(token, index, kv_head) + BLOCK * size + column;
                int count = position - index * BLOCK + 1;
                for (int t = 0; t < (count < BLOCK ? count : BLOCK); t++)
#pragma GCC unroll 4
                    for (int j = 0; j < NV; j++) {
                        Vector value = E::widen(values + t * size + j * LANES);
#pragma GCC unroll 4
                        for (int g = 0; g < G; g++)
                            out[g][j] = multiply_add(value, splat(scores[g * batch.context + index * BLOCK + t]), out[g][j]);
                    }
            }
            for (int g = 0; g < G; g++) {
                Vector inverse = splat(1.0f / total(sum[g]));
                for (int j = 0; j < NV; j++) {
                    float wide[LANES];
                    store(wide, out[g][j] * inverse);
                    narrow<E>(attended + (int64_t(token) * model.heads + head + g) * size + column + j * LANES, wide, LANES);
                }
            }
        }
    }
    template <int G>
    void attend_group(int token, int kv_head, int head, float* scores) const {
        if (model.head_dim % (4 * LANES)) attend_heads<G, 1>(token, kv_head, head, scores);
        else attend_heads<G, 4>(token, kv_head, head, scores);
    }
    void attend(int token, int kv_head, float* scores) const {
        int group = model.heads / model.kv_heads;
        for (int g = 0; g < group; g += 4) {
            int head = kv_head * group + g;
            switch (group - g) {
                case 1: attend_group<1>(token, kv_head, head, scores); break;
                case 2: attend_group<2>(token, kv_head, head, scores); break;
                case 3: attend_group<3>(token, kv_head, head, scores); break;
                default: attend_group<4>(token, kv_head, head, scores);
            }
        }
    }

    // SiLU is x s(x) for the logistic s, and GELU's tanh formula x s(2 u(x)): this is what s takes, negated.
    template <bool GELU, class V>
    static V logistic_argument(V x) {
        if constexpr (GELU) return x * (x * x * -0.0713548163f - 1.59576912f);
        else return -x;
    }
    // inner = activation(gate) * up
    template <bool GELU>
    void activate(int token) {
        float *gate = gated + int64_t(token) * 2 * model.intermediate, *up = gate + model.intermediate;
        add_pairs(GATE, token, x + int64_t(token) * model.hidden, gate);
        add_pairs(UP, token, x + int64_t(token) * model.hidden, up);
        T* out = inner + int64_t(token) * model.intermediate;
        int k = 0;
        for (; k + LANES <= model.intermediate; k += LANES) {
            Vector value = load(gate + k);
            float wide[LANES];
            store(wide, value / (splat(1.0f) + exponential(logistic_argument<GELU>(value))) * load(up + k));
            narrow<E>(out + k, wide, LANES);
        }
        for (; k < model.intermediate; k++) out[k] = E::from(gate[k] / (1.0f + std::exp(logistic_argument<GELU>(gate[k]))) * up[k]);
    }

    // What attention or MLP gave a token, to the residual stream.
    void add_branch(int token, const float* post_norm) const {
        float *from = branch + int64_t(token) * model.hidden, *to = stream + int64_t(token) * model.hidden;
        if (post_norm) norm(from, post_norm, model.hidden, from);
        for (int k = 0; k < model.hidden; k++) to[k] += from[k] * model.residual_scale;
    }

    void scale_logits(float* logits) const {
        if (model.logits_scale != 1.0f)
            for (int k = 0; k < model.vocabulary; k++) logits[k] /= model.logits_scale;
        if (model.logits_soft_cap > 0)
            for (int k = 0; k < model.vocabulary; k++) logits[k] = model.logits_soft_cap * std::tanh(logits[k] / model.logits_soft_cap);
    }

    // Runs body(first, last) over tiles of tokens, the same ones on the same thread each time: so what it left in its cache is there. Ends
    // with a barrier.
    template <class F>
    void by_tile(int thread, F body) {
        int share = (batch.tokens + team.size - 1) / team.size, size = share < TILE ? share : TILE;
        for (int first = thread * size; first < batch.tokens; first += team.size * size)
            body(first, first + size < batch.tokens ? first + size : batch.tokens);
        team.barrier();
    }

    void run(int thread) {
        int tokens = batch.tokens, hidden = model.hidden, heads = model.heads * model.head_dim, inter = model.intermediate;
        int keys = heads, values = heads + model.kv_heads * model.head_dim;
        float* sum = model.apart ? branch : stream;
        for (int index = 0; index < model.layers; index++) {
            const Layer& weights = model.layer[index];
            auto core = [&](Module module) { return uses_core[module] ? mixed[module] : nullptr; };
            auto site = [&](Module module, const T* input, float* y, int64_t stride, bool add = false) {
                const Linear& linear = weights.linear[module];
                return Site<E>{&linear, input, linear.inputs, core(module), y, stride, add};
            };
            find_uses(index);
            by_tile(thread, [&](int first, int last) {
                for (int token = first; token < last; token++) {
                    if (index == 0) embed(token);
                    norm_to(stream + int64_t(token) * hidden, weights.attention_norm, x + int64_t(token) * hidden);
                }
                for (Module module : {Q, K, V}) {
                    mix(module, x, first, last);
                    prefetch_pairs(module, first, last);
                }
            });
            linears<E, 3>(team, {site(Q, x, qkv, width), site(K, x, qkv + keys, width), site(V, x, qkv + values, width)}, tokens);
            by_tile(thread, [&](int first, int last) {
                for (int token = first; token < last; token++) after_qkv(token);
                prefetch_pairs(O, first, last);
            });
            team.each(tokens * model.kv_heads, 1, [&](int item) {
                attend(item / model.kv_heads, item % model.kv_heads, scores + int64_t(thread) * model.heads * batch.context);
            });
            if (uses_core[O]) by_tile(thread, [&](int first, int last) { mix(O, attended, first, last); });
            linears<E, 1>(team, {site(O, attended, sum, hidden, !model.apart)}, tokens);
            by_tile(thread, [&](int first, int last) {
                for (int token = first; token < last; token++) {
                    add_pairs(O, token, attended + int64_t(token) * heads, sum + int64_t(token) * hidden);
                    if (model.apart) add_branch(token, weights.attention_post_norm);
                    norm_to(stream + int64_t(token) * hidden, weights.mlp_norm, x + int64_t(token) * hidden);
                }
                for (Module module : {GATE, UP}) {
                    mix(module, x, first, last);
                    prefetch_pairs(module, first, last);
                }
            });
            linears<E, 2>(team, {site(GATE, x, gated, 2 * inter), site(UP, x, gated + inter, 2 * inter)}, tokens);
            by_tile(thread, [&](int first, int last) {
                for (int token = first; token < last; token++) model.gelu ? activate<true>(token) : activate<false>(token);
                mix(DOWN, inner, first, last);
                prefetch_pairs(DOWN, first, last);
            });
            linears<E, 1>(team, {site(DOWN, inner, sum, hidden, !model.apart)}, tokens);
            if (uses_pairs[DOWN] || model.apart)
                by_tile(thread, [&](int first, int last) {
                    for (int token = first; token < last; token++) {
                        add_pairs(DOWN, token, inner + int64_t(token) * inter, sum + int64_t(token) * hidden);
                        if (model.apart) add_branch(token, weights.mlp_post_norm);
                    }
                });
        }
        team.each(batch.outputs, 1, [&](int i) {
            norm_to(stream + int64_t(batch.output[i]) * hidden, model.final_norm, last + int64_t(i) * hidden);
        });
        linears<E, 1>(team, {Site<E>{&model.head, last, hidden, nullptr, batch.logits, model.vocabulary, false}}, batch.outputs);
        team.each(batch.outputs, 1, [&](int i) {
            float* logits = batch.logits + int64_t(i) * model.vocabulary;
            scale_logits(logits);
            batch.greedy[i] = arg_max(logits);
        });
    }

    int arg_max(const float* values) const {
        Vector top = splat(-std::numeric_limits<float>::infinity());
        int k = 0;
        for (; k + LANES <= model.vocabulary; k += LANES) top = larger(load(values + k), top);
        float best = top[0];
        for (int i = 1; i < LANES; i++) best = best > top[i] ? best : top[i];
        for (; k < model.vocabulary; k++) best = best > values[k] ? best : values[k];
        for (k = 0; k < model.vocabulary; k++)
            if (values[k] == best) return k;
        return 0;
    }
};

template <class E>
void forward(const Model& model, const Batch& batch, Team& team) {
    team.run([&](int thread) {
        begin_matrices();
        Step<E>(model, batch, team).run(thread);
        end_matrices();
    });
}

}  // namespace

extern "C" {
void* smoa_team(int32_t threads) { return new Team(threads); }
void smoa_end_team(void* team) { delete static_cast<Team*>(team); }
void smoa_forward_bfloat16(const Model* model, const Batch* batch, void* team) {
    forward<Bfloat16>(*model, *batch, *static_cast<Team*>(team));
}
void smoa_forward_float32(const Model* model, const Batch* batch, void* team) {
    forward<Float32>(*model, *batch, *static_cast<Team*>(team));
}
int64_t smoa_scratch_bytes(const Model* model, const Batch* batch, void* team) {
    return Step<Float32>(*model, *batch, *static_cast<Team*>(team)).bytes + 64;
}
}
