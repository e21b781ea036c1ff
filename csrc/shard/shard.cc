#include "shard/shard.h"

#include <algorithm>
#include <utility>

#include "base/file.h"

namespace stoker {
namespace {

constexpr uint64_t kWord = sizeof(uint32_t);

std::unique_ptr<RawReader> open_reader(const File& file, ShardFile::Format format) {
  return format == ShardFile::Format::kRaw ? read_uncompressed(file) : read_zstd(file);
}

std::unique_ptr<ShardBody> open_body(const File& file, const ShardFile& shard) {
  if (shard.format == ShardFile::Format::kRaw) return map_raw(file);
  if (shard.expanded_path.empty()) return decode_zstd(file, shard.raw_bytes);
  return expand_zstd(file, shard.raw_bytes, shard.expanded_path);
}

}  // namespace

Shard::Shard(const ShardFile& shard, const Schema& schema) : path_(shard.path), format_(shard.format), schema_(schema) {
  const File file(shard.path);
  if (file.size_bytes() != shard.file_bytes)
    throw corrupt(CorruptShardError::kWholeShard,
                  text("is ", file.size_bytes(), " bytes long but index.json says ", shard.file_bytes));
  const std::unique_ptr<RawReader> reader = open_reader(file, shard.format);
  read_offsets(*reader, shard);
  read_lengths(*reader);
  if (shard.tokens && *shard.tokens != num_tokens())
    throw corrupt(CorruptShardError::kWholeShard,
                  text("holds ", num_tokens(), " tokens but the index says ", *shard.tokens));
  body_ = open_body(file, shard);
}

void Shard::read_offsets(RawReader& reader, const ShardFile& shard) {
  // index.json limits what is allocated here: num_samples words must fit in raw_bytes.
  const uint64_t head_bytes = kWord * (uint64_t{shard.num_samples} + 2);
  if (head_bytes > shard.raw_bytes)
    throw corrupt(CorruptShardError::kWholeShard,
                  text("has ", shard.raw_bytes, " bytes by index.json, too few for the offsets of ", shard.num_samples,
                       " samples"));
  uint32_t num_samples = 0;
  reader.read(std::as_writable_bytes(std::span(&num_samples, 1)));
  if (num_samples != shard.num_samples)
    throw corrupt(CorruptShardError::kWholeShard,
                  text("holds ", num_samples, " samples but index.json says ", shard.num_samples));
  offsets_.resize(size_t{num_samples} + 1);
  reader.read(std::as_writable_bytes(std::span(offsets_)));
  if (offsets_.front() < head_bytes)
    throw corrupt(CorruptShardError::kWholeShard, text("has its first sample at byte ", offsets_.front(),
                                                       ", inside its own header of ", head_bytes, " bytes"));
  for (uint32_t i = 0; i < num_samples; ++i)
    if (offsets_[i + 1] < offsets_[i])
      throw corrupt(i, text("ends at byte ", offsets_[i + 1], ", before it begins at byte ", offsets_[i]));
  if (offsets_.back() != shard.raw_bytes)
    throw corrupt(CorruptShardError::kWholeShard, text("has its last sample end at byte ", offsets_.back(),
                                                       " but index.json says ", shard.raw_bytes, " bytes"));
}

void Shard::read_lengths(RawReader& reader) {
  const uint32_t num_samples = static_cast<uint32_t>(offsets_.size()) - 1;
  token_ends_.reserve(num_samples);
  const std::optional<LengthRule> rule = LengthRule::of(schema_);
  std::vector<std::byte> sample;
  if (!rule) reader.skip(offsets_.front() - kWord * (uint64_t{num_samples} + 2));
  uint32_t total = 0;  // a shard is at most 4 GiB and a token at least a byte
  for (uint32_t i = 0; i < num_samples; ++i) {
    const uint32_t size_bytes = offsets_[i + 1] - offsets_[i];
    if (rule) {
      const std::optional<uint32_t> tokens = rule->tokens(size_bytes);
      if (!tokens) throw corrupt(i, text("is ", size_bytes, " bytes long, which no sample of these columns can be"));
      total += *tokens;
    } else {
      sample.resize(size_bytes);
      reader.read(sample);
      try {
        total += parse_sample(schema_, sample).tokens.size;
      } catch (const SampleFormatError& error) {
        throw corrupt(i, error.what());
      }
    }
    token_ends_.push_back(total);
  }
}

uint32_t Shard::longest_sample() const {
  uint32_t longest = 0;
  uint32_t before = 0;
  for (const uint32_t end : token_ends_) longest = std::max(longest, end - std::exchange(before, end));
  return longest;
}

SampleTokens Shard::parse(uint32_t sample) const {
  return parse(sample, {body_->data() + offsets_[sample], offsets_[sample + 1] - offsets_[sample]});
}

SampleTokens Shard::parse(uint32_t sample, std::span<const std::byte> bytes) const {
  const uint32_t planned = token_ends_[sample] - (sample == 0 ? 0 : token_ends_[sample - 1]);
  try {
    const SampleTokens tokens = parse_sample(schema_, bytes);
    if (tokens.tokens.size != planned)
      throw SampleFormatError(text("states ", tokens.tokens.size, " tokens but its size in bytes means ", planned));
    return tokens;
  } catch (const SampleFormatError& error) {
    throw corrupt(sample, error.what());
  }
}

std::vector<std::byte> Shard::read_sample(uint32_t sample) const {
  const File file(path_);
  const std::unique_ptr<RawReader> reader = open_reader(file, format_);
  std::vector<std::byte> bytes(offsets_[sample + 1] - offsets_[sample]);
  reader->skip(offsets_[sample]);
  reader->read(bytes);
  return bytes;
}

CorruptShardError Shard::corrupt(int64_t sample, const std::string& what) const {
  if (sample == CorruptShardError::kWholeShard)
    return CorruptShardError(path_, sample, text(path_, " ", what, ". Fetch or write the shard again."));
  return CorruptShardError(path_, sample,
                           text("sample ", sample, " of ", path_, " ", what, ". Fetch or write the shard again."));
}

}  // namespace stoker
