// Products with packed weights: some tokens share one read of a panel. The sum over inputs has one order for any number of tokens.
#pragma once
#include <type_traits>

#include "team.h"
#include "vectors.h"

namespace {

// One term of a sum of products: packed weights [inputs, NV vectors of outputs], and tokens [MR, inputs], `stride` elements apart.
template <class E>
struct Term {
    const typename E::T* w;
    int inputs;  // 0: nothing to add
    const typename E::T* x;
    int64_t stride;
};

// sum[m][j] += sum_k w[k][j] x[m][k] for MR tokens and one panel of NV vectors.
template <class E, int MR, int NV>
inline void accumulate(Vector (&sum)[MR][NV], const Term<E>& term) {
    for (int k = 0; k < term.inputs; k += E::PAIR) {
        typename E::Packed weight[NV];
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) weight[j] = E::packed(term.w + (int64_t(k / E::PAIR) * NV + j) * LANES * E::PAIR);
#pragma GCC unroll 8
        for (int m = 0; m < MR; m++) {
            auto factor = E::factor(term.x + m * term.stride + k);
#pragma GCC unroll 4
            for (int j = 0; j < NV; j++) sum[m][j] = E::add(sum[m][j], weight[j], factor);
        }
    }
}

// Whether the processor multiplies matrices of this dtype by itself (AMX). All tokens go that way then, one alone too: it adds in another
// order than the vectors do.
template <class E>
constexpr bool MATRICES = false;

#if defined(__AMX_BF16__)
template <>
constexpr bool MATRICES<Bfloat16> = true;

// The eight matrix registers, each 16 rows of 64 bytes: 0 to 3 hold sums of two times 16 tokens by two vectors of outputs, 4 and 5 the
// tokens' next 32 inputs, 6 and 7 the weights of those.
// (GCC's intrinsics name no memory that they read: so the shape is a constant, and `products` has a barrier.)
struct alignas(64) MatrixShape {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr MatrixShape MATRIX_SHAPE;
inline void begin_matrices() { _tile_loadconfig(&MATRIX_SHAPE); }
inline void end_matrices() { _tile_release(); }

template <int MR, int NV>
inline void accumulate_matrices(const Term<Bfloat16>& term) {
    for (int k = 0; k < term.inputs; k += MATRIX_INPUTS) {
        const uint16_t *x = term.x + k, *w = term.w + int64_t(k) * NV * LANES;
        _tile_loadd(6, w, NV * 64);
        _tile_loadd(4, x, term.stride * 2);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (NV > 1) {
            _tile_loadd(7, w + LANES * 2, NV * 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if constexpr (MR > 16) {
            _tile_loadd(5, x + 16 * term.stride, term.stride * 2);
            _tile_dpbf16ps(2, 5, 6);
            if constexpr (NV > 1) _tile_dpbf16ps(3, 5, 7);
        }
    }
}
#else
inline void begin_matrices() {}
inline void end_matrices() {}
#endif

// sum = the sum of the terms, in their order.
template <class E, int MR, int NV, int N>
inline void products(Vector (&sum)[MR][NV], const Term<E> (&terms)[N]) {
#if defined(__AMX_BF16__)
    if constexpr (MATRICES<E>) {
        asm volatile("" ::: "memory");
        static_assert((MR == 16 || MR == 32) && NV <= 2);
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (const Term<E>& term : terms) accumulate_matrices<MR, NV>(term);
        _tile_stored(0, &sum[0][0], NV * 64);
        if constexpr (NV > 1) _tile_stored(1, &sum[0][1], NV * 64);
        if constexpr (MR > 16) _tile_stored(2, &sum[16][0], NV * 64);
        if constexpr (MR > 16 && NV > 1) _tile_stored(3, &sum[16][1], NV * 64);
        return;
    }
#endif
    for (auto& row : sum)
        for (auto& vector : row) vector = Vector{};
    for (const Term<E>& term : terms) accumulate<E, MR, NV>(sum, term);
}

// Calls body(MR, token, count) over all tokens, a tile at a time: MR is known to the compiler, `count` of its rows are tokens. The matrix
// registers always take 16 or 32 rows, and what is in the others does not matter: buffers of tokens are padded for it.
template <int MR, class F>
inline void tail(int count, int token, F& body) {
    if constexpr (MR > 0) {
        if (count == MR) body(std::integral_constant<int, MR>{}, token, count);
        else tail<MR - 1>(count, token, body);
    }
}
// Tokens whose sums are in registers at once: there are 32, or, without AVX-512, 16 of half the size.
#if defined(__AVX512F__)
constexpr int IN_REGISTERS = TILE;
#else
constexpr int IN_REGISTERS = 3;
#endif
template <class E, class F>
inline void tiles(int first, int last, F body) {
    int token = first;
    if constexpr (MATRICES<E>) {
        for (; token + 16 < last; token += 32) body(std::integral_constant<int, 32>{}, token, last - token < 32 ? last - token : 32);
        if (token < last) body(std::integral_constant<int, 16>{}, token, last - token);
    } else {
        for (; token + IN_REGISTERS <= last; token += IN_REGISTERS) body(std::integral_constant<int, IN_REGISTERS>{}, token, IN_REGISTERS);
        tail<IN_REGISTERS - 1>(last - token, token, body);
    }
}

// What a linear site reads and writes in one step, strides in elements.
template <class E>
struct Site {
    const Linear* linear;
    const typename E::T* x;
    int64_t x_stride;
    const typename E::T* mixed;  // [tokens, MATRIX_INPUTS], RANK of them used: core V^T x of every token; null: none here
    float* y;
    int64_t y_stride;
    bool add;  // onto y (the residual stream), else replace it
};

template <class E, int MR>
inline void panel_tile(const Site<E>& site, int panel, int token, int count) {
    const Linear& linear = *site.linear;
    constexpr int WIDTH = PANEL * LANES;
    Vector sum[MR][PANEL];
    const auto *weight = static_cast<const typename E::T*>(linear.weight), *left = static_cast<const typename E::T*>(linear.left);
    products<E, MR, PANEL>(
        sum, {Term<E>{weight + int64_t(panel) * linear.inputs * WIDTH, linear.inputs, site.x + token * site.x_stride, site.x_stride},
              Term<E>{left + int64_t(panel) * MATRIX_INPUTS * WIDTH, site.mixed ? RANK : 0, site.mixed + int64_t(token) * MATRIX_INPUTS,
                      MATRIX_INPUTS}});
    for (int m = 0; m < count; m++)
        for (int j = 0; j < PANEL; j++) {
            int column = panel * WIDTH + j * LANES;
            float* y = site.y + (token + m) * site.y_stride + column;
            if (column + LANES <= linear.outputs) {
                if (linear.bias) sum[m][j] += load(linear.bias + column);
                if (site.add) sum[m][j] += load(y);
                store(y, sum[m][j]);
            } else {
                for (int i = 0; column + i < linear.outputs; i++)
                    y[i] = sum[m][j][i] + (linear.bias ? linear.bias[column + i] : 0.0f) + (site.add ? y[i] : 0.0f);
            }
        }
}

// y = W x (+ U S mixed) of several sites, shared out by panels. Ends with a barrier.
template <class E, int N>
void linears(Team& team, const Site<E> (&sites)[N], int tokens) {
    int panels[N + 1] = {0};
    for (int s = 0; s < N; s++) panels[s + 1] = panels[s] + (sites[s].linear->outputs + PANEL * LANES - 1) / (PANEL * LANES);
    team.each(panels[N], 2, [&](int item) {
        int s = 0;
        while (item >= panels[s + 1]) s++;
        tiles<E>(0, tokens, [&](auto rows, int token, int count) {
            panel_tile<E, decltype(rows)::value>(sites[s], item - panels[s], token, count);
        });
    });
}

}  // namespace
