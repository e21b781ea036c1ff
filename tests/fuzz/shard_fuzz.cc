#include "shard_fuzz.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>

#include "base/error.h"
#include "base/fault_guard.h"
#include "shard/shard.h"

namespace stoker {
namespace {

constexpr size_t kHeader = 8;

using Role = Column::Role;
using Encoding = Column::Encoding;
const Schema kSchemas[] = {
    {{{Role::kTokens, Encoding::kArray, IntegerType::kU16, 0}}},
    {{{Role::kTokens, Encoding::kArray, std::nullopt, 0}}},
    {{{Role::kTokens, Encoding::kBytes, IntegerType::kI64, 0}}},
    {{{Role::kTokens, Encoding::kStaticArray, IntegerType::kU8, 3}}},
    {{{}, {Role::kTokens, Encoding::kArray, IntegerType::kU16, 0}}},
    {{{Role::kTokens, Encoding::kArray, IntegerType::kI32, 0},
      {Role::kLabels, Encoding::kArray, IntegerType::kI16, 0}}},
    {{{Role::kTokens, Encoding::kBytes, IntegerType::kU32, 0}, {Role::kLabels, Encoding::kArray, std::nullopt, 0}}},
};

/// A file without a name, open for its object's lifetime.
class MemoryFile {
 public:
  explicit MemoryFile(std::span<const std::byte> bytes) : fd_(::memfd_create("shard", 0)) {
    if (fd_ < 0 || ::write(fd_, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) std::abort();
  }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  ~MemoryFile() { ::close(fd_); }
  std::string path() const { return text("/proc/self/fd/", fd_); }

 private:
  int fd_;
};

template <typename T>
T read_at(std::span<const std::byte> bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(value));
  return value;
}

uint64_t sum(const TokenArray& tokens) {
  uint64_t total = 0;
  for (size_t i = 0; i < size_t{tokens.size} * size_bytes(tokens.type); ++i)
    total += std::to_integer<uint64_t>(tokens.values[i]);
  return total;
}

void check(bool holds) {
  if (!holds) std::abort();
}

void read_all(const Shard& shard) {
  for (uint32_t piece = 0; piece < shard.body().num_pieces(); ++piece) shard.load(piece);
  std::vector<const MappedFile*> mappings;
  if (shard.body().mapping() != nullptr) mappings.push_back(shard.body().mapping());
  const FaultGuard guard(std::move(mappings));
  uint32_t end = 0;
  for (uint32_t i = 0; i < shard.num_samples(); ++i) {
    const SampleTokens mapped = shard.parse(i);
    check(mapped.tokens.size == shard.token_ends()[i] - end);
    end = shard.token_ends()[i];
    const std::vector<std::byte> bytes = shard.read_sample(i);
    const SampleTokens copied = shard.parse(i, bytes);
    check(sum(mapped.tokens) == sum(copied.tokens));
    check(mapped.labels.has_value() == copied.labels.has_value());
    if (mapped.labels) check(sum(*mapped.labels) == sum(*copied.labels));
  }
  check(guard.faulted() == nullptr);  // nobody cuts these files
}

}  // namespace

bool read_fuzzed_shard(std::span<const std::byte> input) {
  if (input.size() < kHeader) return false;
  const MemoryFile file(input.subspan(kHeader));
  const auto form = std::to_integer<uint32_t>(input[1]);
  ShardFile shard;
  shard.stream = "fuzz";
  shard.path = file.path();
  shard.format = form & 1 ? ShardFile::Format::kZstd : ShardFile::Format::kRaw;
  shard.file_bytes = shard.raw_bytes = input.size() - kHeader;
  if (form & 1) shard.raw_bytes = read_at<uint32_t>(input, 4) % (1 << 20);
  shard.num_samples = read_at<uint16_t>(input, 2);
  const std::string expanded = text("/dev/shm/stoker-fuzz-", ::getpid());
  if ((form & 3) == 3) shard.expanded_path = expanded;
  bool is_whole = false;
  try {
    const Shard opened(shard, kSchemas[std::to_integer<size_t>(input[0]) % std::size(kSchemas)]);
    read_all(opened);
    is_whole = true;
  } catch (const CorruptShardError&) {
  }
  std::filesystem::remove(expanded);
  return is_whole;
}

}  // namespace stoker
