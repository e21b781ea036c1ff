#include "shard/shard.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "base/file.h"

namespace stoker {
namespace {

constexpr uint64_t kWord = sizeof(uint32_t);
constexpr uint64_t kCacheLine = 64;
constexpr uint64_t kPrefetchBytes = 512;  // then the processor has seen where it goes

std::unique_ptr<RawReader> open_reader(const File& file, ShardFile::Format format) {
  return format == ShardFile::Format::kRaw ? read_uncompressed(file) : read_zstd(file);
}

std::unique_ptr<ShardBody> open_body(const File& file, const ShardFile& shard) {
  if (shard.format == ShardFile::Format::kRaw) return map_raw(file);
  if (shard.expanded_path.empty()) return decode_zstd(file, shard.raw_bytes);
  return expand_zstd(file, shard.raw_bytes, shard.expanded_path);
}

void check_stays_inside(const std::string& root, const std::string& path) {
  std::error_code ignored;  // opening the file will say what is wrong
  const std::filesystem::path real_root = std::filesystem::canonical(root, ignored);
  const std::filesystem::path real_path = std::filesystem::canonical(path, ignored);
  if (ignored) return;
  if (std::mismatch(real_root.begin(), real_root.end(), real_path.begin(), real_path.end()).first != real_root.end())
    throw CorruptShardError(path, CorruptShardError::kWholeShard,
                            text(path, " is a symbolic link that leads out of ", root, ", to ", real_path.string(),
                                 ". Where that is meant, give Stream(follow_links=True)."));
}

/// Runs `action`, with the stream's name put in front of its errors.
template <typename Action>
auto naming(const std::string& stream, Action action) {
  try {
    return action();
  } catch (const CorruptShardError& error) {
    throw CorruptShardError(error.path, error.sample, text("stream \"", stream, "\": ", error.what()));
  } catch (const SystemError& error) {
    throw SystemError(error.code, error.path, text("stream \"", stream, "\": ", error.what()));
  }
}

}  // namespace

Shard::Shard(ShardFile file, const Schema& schema) : file_(std::move(file)), schema_(schema) {
  naming(file_.stream, [&] {
    if (!file_.root.empty()) check_stays_inside(file_.root, file_.path);
    const std::shared_ptr<File> handed_over = std::exchange(file_.opened, nullptr);
    const File opened = handed_over ? std::move(*handed_over) : File(file_.path);
    if (opened.size_bytes() != file_.file_bytes)
      throw corrupt_file(file_.path,
                         text("is ", opened.size_bytes(), " bytes long but index.json says ", file_.file_bytes));
    const std::unique_ptr<RawReader> reader = open_reader(opened, file_.format);
    read_offsets(*reader);
    read_lengths(*reader);
    if (file_.tokens && *file_.tokens != num_tokens())
      throw corrupt_file(file_.path, text("holds ", num_tokens(), " tokens but the index says ", *file_.tokens,
                                          "; if the shard is right, run `stoker index` on its directory"));
    body_ = open_body(opened, file_);
  });
}

Shard::Shard(Missing /*tag*/, ShardFile file, const Schema& schema)
    : file_(std::move(file)),
      schema_(schema),
      offsets_(size_t{file_.num_samples} + 1),
      token_ends_(file_.num_samples),
      body_(no_body()) {}

std::shared_ptr<const Shard> Shard::missing(ShardFile file, const Schema& schema) {
  return std::shared_ptr<const Shard>(new Shard(Missing(), std::move(file), schema));
}

void Shard::read_offsets(RawReader& reader) {
  // index.json limits what is allocated here: num_samples words must fit in raw_bytes.
  const uint64_t head_bytes = kWord * (uint64_t{file_.num_samples} + 2);
  if (head_bytes > file_.raw_bytes)
    throw corrupt_file(file_.path, text("has ", file_.raw_bytes, " bytes by index.json, too few for the offsets of ",
                                        file_.num_samples, " samples"));
  uint32_t num_samples = 0;
  reader.read(std::as_writable_bytes(std::span(&num_samples, 1)));
  if (num_samples != file_.num_samples)
    throw corrupt_file(file_.path, text("holds ", num_samples, " samples but index.json says ", file_.num_samples));
  offsets_.resize(size_t{num_samples} + 1);
  reader.read(std::as_writable_bytes(std::span(offsets_)));
  if (offsets_.front() < head_bytes)
    throw corrupt_file(file_.path, text("has its first sample at byte ", offsets_.front(),
                                        ", inside its own header of ", head_bytes, " bytes"));
  for (uint32_t i = 0; i < num_samples; ++i)
    if (offsets_[i + 1] < offsets_[i])
      throw corrupt_sample(file_.path, i,
                           text("ends at byte ", offsets_[i + 1], ", before it begins at byte ", offsets_[i]));
  if (offsets_.back() != file_.raw_bytes)
    throw corrupt_file(file_.path, text("has its last sample end at byte ", offsets_.back(), " but index.json says ",
                                        file_.raw_bytes, " bytes"));
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
      if (!tokens)
        throw corrupt_sample(file_.path, i,
                             text("is ", size_bytes, " bytes long, which no sample of these columns can be"));
      total += *tokens;
    } else {
      sample.resize(size_bytes);
      reader.read(sample);
      try {
        total += parse_sample(schema_, sample).tokens.size;
      } catch (const SampleFormatError& error) {
        throw corrupt_sample(file_.path, i, error.what());
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

Range Shard::samples_of(Range tokens) const {
  const auto sample_at = [&](uint64_t token) -> uint64_t {
    return std::upper_bound(token_ends_.begin(), token_ends_.end(), token) - token_ends_.begin();
  };
  return {sample_at(tokens.begin), sample_at(tokens.end - 1) + 1};
}

SampleTokens Shard::parse(uint32_t sample) const {
  try {
    return parse_planned(sample, {body_->data() + offsets_[sample], offsets_[sample + 1] - offsets_[sample]});
  } catch (const SampleFormatError& error) {
    throw corrupt(sample, error.what());
  }
}

SampleTokens Shard::parse(uint32_t sample, std::span<const std::byte> bytes) const {
  return naming(file_.stream, [&] {
    try {
      return parse_planned(sample, bytes);
    } catch (const SampleFormatError& error) {
      throw corrupt_sample(file_.path, sample, error.what());
    }
  });
}

SampleTokens Shard::parse_planned(uint32_t sample, std::span<const std::byte> bytes) const {
  const SampleTokens tokens = parse_sample(schema_, bytes);
  const uint32_t planned = token_ends_[sample] - (sample == 0 ? 0 : token_ends_[sample - 1]);
  if (tokens.tokens.size != planned)
    throw SampleFormatError(text("states ", tokens.tokens.size, " tokens but its size in bytes means ", planned));
  return tokens;
}

void Shard::prefetch(uint32_t sample, uint32_t token) const {
  const uint64_t begin = offsets_[sample];
  const uint64_t first_token = sample == 0 ? 0 : token_ends_[sample - 1];
  const uint64_t num_tokens = token_ends_[sample] - first_token;
  const uint64_t size_bytes = offsets_[sample + 1] - begin;
  const std::byte* at = body_->data() + begin;
  __builtin_prefetch(at);                                       // the header
  at += num_tokens == 0 ? 0 : size_bytes * token / num_tokens;  // near the token: one column holds most of the bytes
  for (uint64_t line = 0; line < std::min(kPrefetchBytes, size_bytes); line += kCacheLine)
    __builtin_prefetch(at + line);
}

std::vector<std::byte> Shard::read_sample(uint32_t sample) const {
  return naming(file_.stream, [&] {
    const File file(file_.path);
    const std::unique_ptr<RawReader> reader = open_reader(file, file_.format);
    std::vector<std::byte> bytes(offsets_[sample + 1] - offsets_[sample]);
    reader->skip(offsets_[sample]);
    reader->read(bytes);
    return bytes;
  });
}

void Shard::for_each_sample(const std::function<void(const SampleTokens&)>& visit) const {
  naming(file_.stream, [&] {
    const File file(file_.path);
    const std::unique_ptr<RawReader> reader = open_reader(file, file_.format);
    reader->skip(offsets_.front());
    std::vector<std::byte> bytes;
    for (uint32_t sample = 0; sample < num_samples(); ++sample) {
      bytes.resize(offsets_[sample + 1] - offsets_[sample]);
      reader->read(bytes);
      visit(parse(sample, bytes));
    }
  });
}

void Shard::load(uint32_t piece) const {
  naming(file_.stream, [&] { body_->load(piece); });
}

CorruptShardError Shard::corrupt(int64_t sample, const std::string& what) const {
  retire();
  const bool is_expanded = !file_.expanded_path.empty();
  const std::string& path = is_expanded ? file_.expanded_path : file_.path;
  if (is_expanded) ::unlink(path.c_str());
  const std::string subject = sample == CorruptShardError::kWholeShard ? path : text("sample ", sample, " of ", path);
  const std::string advice = is_expanded ? text("It was removed, and will be expanded again from ", file_.path)
                                         : "Fetch or write the shard again";
  return CorruptShardError(path, sample,
                           text("stream \"", file_.stream, "\": ", subject, " ", what, ". ", advice, "."));
}

}  // namespace stoker
