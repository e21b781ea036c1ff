// Writes small MDS data sets for tests, independently of the code under test.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "shard/shard_store.h"

namespace stoker::testing_files {

/// A directory that is removed with its object.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  ~TemporaryDirectory();
  std::string path() const { return path_.string(); }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

using Bytes = std::vector<std::byte>;
using ShardLengths = std::vector<uint32_t>;  // tokens of each sample

/// The token that every test data set has at a place.
uint16_t token_at(const std::string& stream, uint32_t shard, uint32_t sample, uint32_t i);

/// The label that it has, in a form with labels: none on the first third of a sample, and none at all in each fifth
/// one.
int32_t label_at(const std::string& stream, uint32_t shard, uint32_t sample, uint32_t i, uint32_t length);

/// How a stream's shards are written.
struct Form {
  bool bytes_column = false;     // `bytes` instead of `ndarray:uint16`
  bool other_column = false;     // a string column in front of the tokens
  bool compressed = false;       // zstd
  size_t frame_bytes = 1 << 20;  // raw bytes a zstd frame; 0: one frame that does not state its size
  bool labels = false;           // a column `ndarray:int32` of labels, behind the tokens
};

/// The raw bytes of a shard.
Bytes raw_shard(const std::string& stream, uint32_t shard, const ShardLengths& lengths, const Form& form);

Bytes compress(const Bytes& raw, size_t frame_bytes);
void write_file(const std::string& path, const Bytes& bytes);
Bytes read_file(const std::string& path);

Schema schema_of(const Form& form);

/// Writes shards into directory/name and returns what an index would say of them.
StreamFiles write_stream(const TemporaryDirectory& directory, const std::string& name,
                         const std::vector<ShardLengths>& shards, const Form& form);

}  // namespace stoker::testing_files
