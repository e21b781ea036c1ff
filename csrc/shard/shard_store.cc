#include "shard/shard_store.h"

#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

namespace stoker {
namespace {

// Names an expanded shard by what it was made from, so that a data set written anew is expanded anew.
std::string expanded_path(const StreamFiles& stream, const std::string& zip_path, const std::string& basename) {
  struct stat status{};
  if (::stat(zip_path.c_str(), &status) != 0) return {};  // opening the shard will say why
  return text(stream.expand_directory, "/", basename, ".", std::hex, status.st_size, "-", status.st_mtim.tv_sec, "-",
              status.st_mtim.tv_nsec);
}

ShardFile find_file(const StreamFiles& stream, const StreamFiles::Entry& entry) {
  ShardFile file;
  file.raw_bytes = file.file_bytes = entry.raw_bytes;
  file.num_samples = entry.num_samples;
  file.tokens = entry.tokens;
  file.path = stream.directory + "/" + entry.raw_basename;
  // A compressed shard may lie there decompressed, as MosaicML Streaming leaves it in its cache.
  if (entry.zip_basename.empty() || ::access(file.path.c_str(), F_OK) == 0) return file;
  file.format = ShardFile::Format::kZstd;
  file.path = stream.directory + "/" + entry.zip_basename;
  file.file_bytes = entry.zip_bytes;
  if (!stream.expand_directory.empty()) file.expanded_path = expanded_path(stream, file.path, entry.raw_basename);
  return file;
}

}  // namespace

std::shared_ptr<const Shard> ShardStore::get(uint32_t stream, uint32_t shard) {
  const uint64_t key = uint64_t{stream} << 32 | shard;
  {
    const std::lock_guard lock(mutex_);
    const auto found = open_.find(key);
    if (found != open_.end() && !found->second.shard->is_broken()) {
      uses_.splice(uses_.end(), uses_, found->second.use);
      return found->second.shard;
    }
  }

  // Not under the mutex: files are slow. Two threads may open the same shard; the first one's is kept.
  const StreamFiles& files = streams_[stream];
  const StreamFiles::Entry& entry = files.shards[shard];
  auto opened = std::make_shared<const Shard>(find_file(files, entry), files.schemas[entry.schema]);

  std::vector<std::shared_ptr<const Shard>> closed;  // let go after the mutex
  const std::lock_guard lock(mutex_);
  Open& place = open_[key];
  if (place.shard && !place.shard->is_broken()) return place.shard;
  if (place.shard) {
    closed.push_back(place.shard);
    head_bytes_ -= place.shard->head_bytes();
  } else {
    place.use = uses_.insert(uses_.end(), key);
  }
  place.shard = opened;
  head_bytes_ += opened->head_bytes();
  while (open_.size() > 1 && (open_.size() > kMaxOpenShards || head_bytes_ > kMaxHeadBytes)) {
    const auto oldest = open_.find(uses_.front());
    head_bytes_ -= oldest->second.shard->head_bytes();
    closed.push_back(std::move(oldest->second.shard));
    open_.erase(oldest);
    uses_.pop_front();
  }
  return opened;
}

}  // namespace stoker
