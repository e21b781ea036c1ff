// Half-open ranges of whatever is counted: units, tokens, samples, bytes.
#pragma once

#include <cstdint>

namespace stoker {

struct Range {
  uint64_t begin = 0;
  uint64_t end = 0;

  uint64_t size() const { return end - begin; }
  bool contains(uint64_t x) const { return begin <= x && x < end; }
};

}  // namespace stoker
