// Products with packed weights: TILE tokens share one read of a panel. The sum over inputs has one order for any number of tokens.
#pragma once
#include <type_traits>

#include "vectors.h"

namespace {

// y[m][j] += sum_k w[k][j] x[m][k] for MR tokens and one panel of NV vectors.
template <class E, int MR, int NV>
inline void accumulate(Vector (&sum)[MR][NV], const typename E::T* w, int inputs, const typename E::T* x, int64_t stride) {
    for (int k = 0; k < inputs; k += E::PAIR) {
        typename E::Packed weight[NV];
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) weight[j] = E::packed(w + (int64_t(k / E::PAIR) * NV + j) * LANES * E::PAIR);
#pragma GCC unroll 8
        for (int m = 0; m < MR; m++) {
            auto factor = E::factor(x + m * stride + k);
#pragma GCC unroll 4
            for (int j = 0; j < NV; j++) sum[m][j] = E::add(sum[m][j], weight[j], factor);
        }
    }
}

// What a linear site reads and writes in one step, strides in elements.
template <class E>
struct Site {
    const Linear* linear;
    const typename E::T* x;
    int64_t x_stride;
    const typename E::T* mixed;  // [tokens, RANK]: core V^T x of every token, or null: no row uses LoRA-XS here
    float* y;
    int64_t y_stride;
    bool add;  // onto y (the residual stream), else replace it
};

template <class E, int MR>
inline void panel_tile(const Site<E>& site, int panel, int token) {
    const Linear& linear = *site.linear;
    constexpr int WIDTH = PANEL * LANES;
    Vector sum[MR][PANEL] = {};
    accumulate<E, MR, PANEL>(sum, static_cast<const typename E::T*>(linear.weight) + int64_t(panel) * linear.inputs * WIDTH,
                             linear.inputs, site.x + token * site.x_stride, site.x_stride);
    if (site.mixed)
        accumulate<E, MR, PANEL>(sum, static_cast<const typename E::T*>(linear.left) + int64_t(panel) * RANK * WIDTH, RANK,
                                 site.mixed + int64_t(token) * RANK, RANK);
    for (int m = 0; m < MR; m++)
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

// Calls body(MR, token) over all tokens, TILE at a time and the rest at once; MR is known to the compiler.
template <int MR, class F>
inline void tail(int count, int token, F& body) {
    if constexpr (MR > 0) {
        if (count == MR) body(std::integral_constant<int, MR>{}, token);
        else tail<MR - 1>(count, token, body);
    }
}
template <class F>
inline void tiles(int first, int last, F body) {
    int token = first;
    for (; token + TILE <= last; token += TILE) body(std::integral_constant<int, TILE>{}, token);
    tail<TILE - 1>(last - token, token, body);
}

// y = W x (+ U S mixed) of several sites, shared out by panels. Ends with a barrier.
template <class E, int N>
void linears(const Site<E> (&sites)[N], int tokens) {
    int panels[N + 1] = {0};
    for (int s = 0; s < N; s++) panels[s + 1] = panels[s] + (sites[s].linear->outputs + PANEL * LANES - 1) / (PANEL * LANES);
#pragma omp for schedule(dynamic, 2)
    for (int item = 0; item < panels[N]; item++) {
        int s = 0;
        while (item >= panels[s + 1]) s++;
        tiles(0, tokens, [&](auto rows, int token) { panel_tile<E, decltype(rows)::value>(sites[s], item - panels[s], token); });
    }
}

}  // namespace
