#include "shard/sample.h"

#include <cstring>

#include "base/error.h"

namespace stoker {
namespace {

// Sizes of an ndarray header: one byte for ndim and the width code k, then ndim numbers of 1 << k bytes.
constexpr int kWidthCodes = 4;

uint64_t read_little_endian(const std::byte* bytes, size_t size) {
  uint64_t value = 0;
  std::memcpy(&value, bytes, size);  // little-endian hosts only, as the format's other readers (checked at build)
  return value;
}

TokenArray parse_column(const Column& column, std::span<const std::byte> bytes) {
  TokenArray array;
  if (column.encoding == Column::Encoding::kArray) {
    size_t header = column.type ? 0 : 1;
    if (bytes.size() < header + 1) throw SampleFormatError("has an ndarray shorter than its header");
    if (column.type) {
      array.type = *column.type;
    } else {
      const auto code = std::to_integer<uint8_t>(bytes[0]);
      const std::optional<IntegerType> type = integer_type_of_code(code);
      if (!type)
        throw SampleFormatError(text("has an ndarray of dtype code ", int{code}, ", which is not an integer type"));
      array.type = *type;
    }
    const auto shape = std::to_integer<uint8_t>(bytes[header++]);
    const int num_dims = shape >> 2;
    const size_t width = size_t{1} << (shape & 3);
    if (num_dims != 1) throw SampleFormatError(text("has an ndarray of ", num_dims, " dimensions; tokens have 1"));
    if (bytes.size() - header < width) throw SampleFormatError("has an ndarray shorter than its header");
    const uint64_t stated = read_little_endian(bytes.data() + header, width);
    bytes = bytes.subspan(header + width);
    if (stated > bytes.size() || stated * size_bytes(array.type) != bytes.size())
      throw SampleFormatError(text("has an ndarray that states ", stated, " values of type ", name(array.type),
                                   " but holds ", bytes.size(), " bytes of them"));
  } else {
    array.type = *column.type;
    if (bytes.size() % size_bytes(array.type) != 0)
      throw SampleFormatError(text("has a token column of ", bytes.size(), " bytes, which is not a whole number of ",
                                   name(array.type), " values"));
  }
  array.size = static_cast<uint32_t>(bytes.size() / size_bytes(array.type));
  array.values = bytes.data();
  return array;
}

}  // namespace

SampleTokens parse_sample(const Schema& schema, std::span<const std::byte> sample) {
  static constexpr size_t kSizeWord = 4;
  const size_t size_words = kSizeWord * schema.num_variable();
  if (sample.size() < size_words)
    throw SampleFormatError(text("is ", sample.size(), " bytes long, too short for its size words"));
  const std::byte* size_word = sample.data();
  std::span<const std::byte> rest = sample.subspan(size_words);

  SampleTokens out;
  for (const Column& column : schema.columns) {
    uint64_t size = column.fixed_size;
    if (size == 0) {
      size = read_little_endian(size_word, kSizeWord);
      size_word += kSizeWord;
    }
    if (size > rest.size())
      throw SampleFormatError(text("has a column of ", size, " bytes where ", rest.size(), " are left"));
    const std::span<const std::byte> bytes = rest.first(size);
    rest = rest.subspan(size);
    if (column.role == Column::Role::kTokens) out.tokens = parse_column(column, bytes);
    if (column.role == Column::Role::kLabels) out.labels = parse_column(column, bytes);
  }
  if (!rest.empty()) throw SampleFormatError(text("has ", rest.size(), " bytes after its last column"));
  if (out.labels && out.labels->size != out.tokens.size)
    throw SampleFormatError(text("has ", out.tokens.size, " tokens but ", out.labels->size, " labels"));
  return out;
}

std::optional<LengthRule> LengthRule::of(const Schema& schema) {
  LengthRule rule;
  for (const Column& column : schema.columns) {
    if (column.role == Column::Role::kTokens && column.encoding == Column::Encoding::kStaticArray) {
      rule.fixed_tokens_ = column.fixed_size / size_bytes(*column.type);
      rule.constant_bytes_ = column.fixed_size;
      return rule;
    }
  }
  for (const Column& column : schema.columns) {
    if (column.fixed_size > 0) {
      rule.constant_bytes_ += column.fixed_size;
      continue;
    }
    if (column.role == Column::Role::kOther || !column.type) return std::nullopt;
    rule.constant_bytes_ += sizeof(uint32_t);  // its size word
    rule.bytes_per_token_ += size_bytes(*column.type);
    if (column.encoding == Column::Encoding::kArray) {
      ++rule.num_headers_;
      ++rule.constant_bytes_;  // ndim and width code
    }
  }
  return rule;
}

std::optional<uint32_t> LengthRule::tokens(uint32_t sample_bytes) const {
  if (fixed_tokens_) return sample_bytes < constant_bytes_ ? std::nullopt : fixed_tokens_;
  for (int code = 0; code < kWidthCodes; ++code) {
    const uint64_t overhead = constant_bytes_ + (uint64_t{num_headers_} << code);
    if (sample_bytes < overhead || (sample_bytes - overhead) % bytes_per_token_ != 0) continue;
    const uint64_t tokens = (sample_bytes - overhead) / bytes_per_token_;
    // The writer takes the narrowest width that holds the shape: codes 0 to 3 for 1, 2, 4 and 8 bytes.
    const bool fits = code == kWidthCodes - 1 || tokens < uint64_t{1} << (8 << code);
    const bool needed = code == 0 || tokens >= uint64_t{1} << (8 << (code - 1));
    if (num_headers_ == 0 || (fits && needed)) return static_cast<uint32_t>(tokens);
  }
  return std::nullopt;
}

}  // namespace stoker
