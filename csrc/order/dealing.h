// Counting numbers by their remainder mod L: how things dealt one by one fall on L lanes.
#pragma once

#include <algorithm>
#include <cstdint>

namespace stoker {

/// ceil(a / b), for any a.
template <typename T>
constexpr T ceil_div(T a, T b) {
  return a / b + (a % b != 0);
}

/// How many K in [0, end) have K mod lanes < j.
constexpr uint64_t count_below(uint64_t end, uint64_t lanes, uint64_t j) {
  return end / lanes * j + std::min(end % lanes, j);
}

/// How many K in [begin, end) have K mod lanes == lane. Shares differ by at most one.
constexpr uint64_t dealt(uint64_t begin, uint64_t end, uint64_t lanes, uint64_t lane) {
  return count_below(end, lanes, lane + 1) - count_below(end, lanes, lane) - count_below(begin, lanes, lane + 1) +
         count_below(begin, lanes, lane);
}

}  // namespace stoker
