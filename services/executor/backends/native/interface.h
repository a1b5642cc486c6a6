// The C interface: plain structs of pointers and sizes, mirrored field by field in `backend.py`.
#pragma once
#include <cstdint>

constexpr int LANES = 16;   // float32 numbers in a vector
constexpr int PANEL = 2;    // vectors of outputs in a weight panel
constexpr int TILE = 8;     // tokens that share one read of the weights, and one task's share of other work
constexpr int BLOCK = 16;   // tokens in a block of the key/value cache: one vector of scores
constexpr int RANK = 16;    // rank of the LoRA-XS bases: one vector
constexpr int MATRIX_INPUTS = 32;  // inputs that a matrix register takes; RANK is padded to it with zeros
constexpr int MODULES = 7;  // q, k, v, o, gate, up, down
enum Module { Q, K, V, O, GATE, UP, DOWN };

extern "C" {
struct Linear {
    const void* weight;  // packed [outputs, inputs]
    const float* bias;   // [outputs] or null
    const void* left;    // packed U S [outputs, MATRIX_INPUTS], or null: no LoRA-XS bases
    const void* right;   // packed V^T [RANK, inputs], one panel of one vector
    int32_t outputs, inputs;
};
struct Layer {
    Linear linear[MODULES];
    const float *attention_norm, *mlp_norm;            // [hidden], of what these read
    const float *attention_post_norm, *mlp_post_norm;  // [hidden], of what they give, or null
    const float *query_norm, *key_norm;                // [head_dim] or null
    const float *cosine, *sine;                        // [context, rotary / 2], or null: positions are not rotated
    int64_t window;                                    // tokens a token sees, itself included; 0: all
};
struct Model {
    const Layer* layer;
    Linear head;
    const void* embedding;  // packed [vocabulary, hidden]
    const float* final_norm;
    int32_t layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary;
    int32_t rotary;  // dimensions of a head that are rotated
    int32_t gelu;    // the MLP's activation is GELU by its tanh formula, not SiLU
    int32_t apart;   // what attention and MLP give is normed or scaled before it is added to the stream
    float epsilon, scale;  // scale: of products of queries and keys
    float soft_cap, logits_soft_cap;  // 0: none
    float embedding_scale, residual_scale, logits_scale;  // the last divides
};
struct Pair {
    const void *a, *b;  // [rank, inputs], [rank, outputs]
    float weight;
    int32_t rank;
};
struct Mixture {
    const float* const* core;  // [layers * MODULES] of [RANK in, RANK out] or null; null as a whole: none
    const int32_t* first;      // [layers * MODULES + 1] into pair; null: none
    const Pair* pair;
};
struct Sequence {
    const Mixture* mixture;
    const int32_t* blocks;  // cache blocks, in order of position
};
struct Batch {
    const int32_t *id, *position, *sequence;  // [tokens]
    const Sequence* sequences;
    const int32_t* output;  // [outputs] tokens whose next-token logits are wanted
    float* logits;          // [outputs, vocabulary]
    int32_t* greedy;        // [outputs] arg max, the lowest of equals
    void* cache;            // [layers, blocks, kv_heads, 2, BLOCK * head_dim]
    int64_t blocks;
    void* scratch;
    int32_t tokens, outputs, context;
};
}
