#include "shard/shard_store.h"

#include <sys/stat.h>

#include "base/error.h"

namespace stoker {
namespace {

// Names an expanded shard by what it was made from, so that a data set written anew is expanded anew.
std::string expanded_path(const StreamFiles& stream, const std::string& path, const std::string& basename) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) return {};  // opening the shard will say why
  return text(stream.expand_directory, "/", basename, ".", std::hex, status.st_size, "-", status.st_mtim.tv_sec, "-",
              status.st_mtim.tv_nsec, ".raw");
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
  ShardFile file{files.directory + "/" + entry.basename, entry.format, entry.file_bytes, entry.raw_bytes,
                 entry.num_samples, entry.tokens, {}};
  if (entry.format == ShardFile::Format::kZstd && !files.expand_directory.empty())
    file.expanded_path = expanded_path(files, file.path, entry.basename);
  auto opened = std::make_shared<const Shard>(file, files.schemas[entry.schema]);

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
