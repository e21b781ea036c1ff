#include "fill/widen.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

namespace stoker {
namespace {

// __restrict: the compiler vectorises these loops only if it knows that shard, ids and labels don't overlap.
template <typename Token, typename Integer, bool kBoth, bool kLargest>
std::make_unsigned_t<Token> copy(const std::byte* __restrict source, uint32_t count, Integer* __restrict ids,
                                 Integer* __restrict labels) {
  std::make_unsigned_t<Token> largest = 0;
  for (uint32_t i = 0; i < count; ++i) {
    Token token;  // samples are not aligned to their values
    std::memcpy(&token, source + size_t{i} * sizeof(Token), sizeof(Token));
    ids[i] = static_cast<Integer>(token);  // what does not fit is seen in `largest`
    if constexpr (kBoth) labels[i] = static_cast<Integer>(token);
    if constexpr (kLargest) largest = std::max(largest, static_cast<std::make_unsigned_t<Token>>(token));
  }
  return largest;
}

template <typename Token, typename Integer>
uint64_t widen_from(const std::byte* source, uint32_t count, uint64_t limit, Integer* ids, Integer* labels) {
  const bool both = labels != nullptr;
  if (std::is_unsigned_v<Token> && std::numeric_limits<Token>::max() < limit) {
    if (both) return copy<Token, Integer, true, false>(source, count, ids, labels);
    return copy<Token, Integer, false, false>(source, count, ids, labels);
  }
  const auto largest = both ? copy<Token, Integer, true, true>(source, count, ids, labels)
                            : copy<Token, Integer, false, true>(source, count, ids, labels);
  const bool negative = std::is_signed_v<Token> && static_cast<std::make_signed_t<Token>>(largest) < 0;
  return negative ? UINT64_MAX : largest;
}

}  // namespace

template <typename Integer>
uint64_t widen(const TokenArray& source, uint32_t begin, uint32_t count, uint64_t limit, Integer* ids,
               Integer* labels) {
  const std::byte* from = source.values + uint64_t{begin} * size_bytes(source.type);
  switch (source.type) {
    case TokenType::kU8:
      return widen_from<uint8_t>(from, count, limit, ids, labels);
    case TokenType::kI8:
      return widen_from<int8_t>(from, count, limit, ids, labels);
    case TokenType::kU16:
      return widen_from<uint16_t>(from, count, limit, ids, labels);
    case TokenType::kI16:
      return widen_from<int16_t>(from, count, limit, ids, labels);
    case TokenType::kU32:
      return widen_from<uint32_t>(from, count, limit, ids, labels);
    case TokenType::kI32:
      return widen_from<int32_t>(from, count, limit, ids, labels);
    case TokenType::kU64:
      return widen_from<uint64_t>(from, count, limit, ids, labels);
    case TokenType::kI64:
      return widen_from<int64_t>(from, count, limit, ids, labels);
  }
  return 0;  // not reached
}

template uint64_t widen(const TokenArray&, uint32_t, uint32_t, uint64_t, int32_t*, int32_t*);
template uint64_t widen(const TokenArray&, uint32_t, uint32_t, uint64_t, int64_t*, int64_t*);

}  // namespace stoker
