// What the hardware allows and what the core alone does, on the shards of benchmarks/data.py. Prints one JSON object.
//
//   core_bench bound RING_MIB FLAT_FILE      one thread writes the ids and labels of every row of a mapped file of
//                                            uint16 rows, as plain loops, into a ring of that size: rows in file order
//   core_bench shuffled RING_MIB FLAT_FILE   the same, rows in random order
//   core_bench decode DIRECTORY...           one thread decodes every frame of the directories' zstd shards
//   core_bench engine WORKERS DIRECTORY...   the engine alone: order, planning, loading, filling; 0: in one thread
//   core_bench pack SEQ_LEN DIRECTORY        the layout `pack` alone, on the lengths of a directory's samples in memory
//
// Batches are 8 x 2048 int64 ids and labels; four buffers are in flight.
#include <sys/resource.h>
#include <zstd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "base/fault_guard.h"
#include "base/file.h"
#include "engine/engine.h"
#include "layout/layout.h"
#include "order/order.h"

namespace {

using namespace stoker;

constexpr uint32_t kSeqLen = 2048;
constexpr uint32_t kRows = 8;
constexpr uint64_t kTokensMeasured = 400'000'000;
// A cache that holds the blocks at hand, but not the data set: compressed shards are decoded anew in every pass.
constexpr uint64_t kCacheBytes = uint64_t{100} << 20;
constexpr uint32_t kShuffleBlock = 4096;

double cpu_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) { return static_cast<double>(t.tv_sec) + 1e-6 * double(t.tv_usec); };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

/// Prints the rates since it was made.
class Watch {
 public:
  void report(uint64_t number, const char* what = "tokens", nlohmann::json result = {}) const {
    result["wall_s"] = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    result["cpu_s"] = cpu_seconds() - cpu_;
    result[what] = number;
    std::puts(result.dump().c_str());
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  double cpu_ = cpu_seconds();
};

void bound(size_t ring_mib, const std::string& path, bool is_shuffled) {
  const MappedFile mapping{File(path)};
  const FaultGuard guard({&mapping});
  const std::span<const std::byte> bytes = mapping.bytes();
  const size_t num_rows = bytes.size() / sizeof(uint16_t) / kSeqLen;
  std::vector<int64_t> ring((ring_mib << 20) / sizeof(int64_t));
  const size_t ring_rows = ring.size() / (2 * kSeqLen);
  std::vector<uint32_t> order(num_rows);
  std::iota(order.begin(), order.end(), 0);
  if (is_shuffled) std::shuffle(order.begin(), order.end(), std::mt19937(0));
  uint64_t tokens = 0;
  uint64_t checksum = 0;
  const auto pass = [&] {
    for (size_t row = 0; row < num_rows; ++row) {
      const auto* source = reinterpret_cast<const uint16_t*>(bytes.data()) + size_t{order[row]} * kSeqLen;
      int64_t* ids = ring.data() + row % ring_rows * 2 * kSeqLen;
      int64_t* labels = ids + kSeqLen;
      for (uint32_t i = 0; i < kSeqLen; ++i) {
        ids[i] = source[i];
        labels[i] = source[i];
      }
      checksum += static_cast<uint64_t>(labels[row % kSeqLen]);
    }
    tokens += num_rows * kSeqLen;
  };
  pass();  // warm
  tokens = 0;
  const Watch watch;
  while (tokens < kTokensMeasured) pass();
  watch.report(tokens);
  if (checksum == 0) std::abort();
}

StreamFiles read_index(const std::string& directory) {
  const auto index = nlohmann::json::parse(std::ifstream(directory + "/index.json"));
  StreamFiles files;
  files.name = directory;
  files.directory = directory;
  for (const nlohmann::json& shard : index["shards"]) {
    Schema schema;
    for (size_t i = 0; i < shard["column_names"].size(); ++i) {
      const auto role = shard["column_names"][i] == "labels" ? Column::Role::kLabels : Column::Role::kTokens;
      const auto type = shard["column_encodings"][i] == "ndarray:uint16" ? IntegerType::kU16 : IntegerType::kI32;
      schema.columns.push_back({role, Column::Encoding::kArray, type, 0});
    }
    files.schemas = {schema};
    StreamFiles::Entry entry;
    entry.raw_basename = shard["raw_data"]["basename"].get<std::string>();
    entry.raw_bytes = shard["raw_data"]["bytes"].get<uint64_t>();
    if (const nlohmann::json& zip = shard["zip_data"]; !zip.is_null()) {
      entry.zip_basename = zip["basename"].get<std::string>();
      entry.zip_bytes = zip["bytes"].get<uint64_t>();
    }
    entry.schema = 0;
    entry.num_samples = shard["samples"].get<uint32_t>();
    entry.tokens = index["stoker"]["tokens"][files.shards.size()].get<uint64_t>();
    files.shards.push_back(entry);
  }
  return files;
}

void decode(const std::vector<std::string>& directories) {
  const std::unique_ptr<ZSTD_DCtx, size_t (*)(ZSTD_DCtx*)> context(ZSTD_createDCtx(), ZSTD_freeDCtx);
  std::vector<std::byte> frame(size_t{2} << 20);
  uint64_t tokens = 0;
  const auto pass = [&] {
    for (const std::string& directory : directories)
      for (const StreamFiles::Entry& entry : read_index(directory).shards) {
        const MappedFile mapping{File(directory + "/" + entry.zip_basename)};
        std::span<const std::byte> rest = mapping.bytes();
        while (!rest.empty()) {
          const size_t size = ZSTD_findFrameCompressedSize(rest.data(), rest.size());
          if (ZSTD_isError(ZSTD_decompressDCtx(context.get(), frame.data(), frame.size(), rest.data(), size)))
            std::abort();
          rest = rest.subspan(size);
        }
        tokens += *entry.tokens;
      }
  };
  pass();
  tokens = 0;
  const Watch watch;
  while (tokens < kTokensMeasured) pass();
  watch.report(tokens);
}

void engine(uint32_t num_workers, const std::vector<std::string>& directories) {
  std::vector<StreamFiles> streams;
  OrderSpec spec;
  spec.unit = kSeqLen;
  spec.global_batch = kRows;
  spec.shuffle_block = kShuffleBlock;
  for (size_t s = 0; s < directories.size(); ++s) {
    streams.push_back(read_index(directories[s]));
    StreamSizes sizes{directories[s], {}};
    uint64_t rows = 0;
    for (const StreamFiles::Entry& entry : streams.back().shards) {
      sizes.shard_sizes.push_back(*entry.tokens);
      rows += entry.num_samples;
    }
    spec.streams.push_back(sizes);
    spec.counts.push_back(rows);  // 3/4 and 1/4, as the streams are
  }
  const auto store = std::make_shared<ShardStore>(streams, kCacheBytes);
  const auto order = std::make_shared<const Order>(spec);
  BatchFormat format;
  format.fields = {{Field::kInputIds}, {Field::kLabels}};
  format.num_rows = kRows;
  format.seq_len = kSeqLen;
  LayoutSpec layout;
  layout.kind = LayoutKind::kConcat;
  layout.seq_len = kSeqLen;
  auto planner = std::make_unique<Planner>(store, order, layout, RankSlice{}, 0);
  std::vector<std::vector<std::byte>> buffers(num_workers == 0 ? 4 : 8, std::vector<std::byte>(format.size_bytes()));
  const Engine::Pointer running = Engine::create(std::move(planner), store, format, num_workers);
  for (auto& buffer : buffers) running->submit(buffer.data());
  uint64_t batches = 0;
  const auto take = [&](uint64_t tokens) {
    for (const uint64_t end = batches + tokens / (kRows * kSeqLen); batches < end; ++batches) {
      while (!running->wait(std::chrono::seconds(1))) continue;
      running->next();
      running->submit(buffers[batches % buffers.size()].data());
    }
  };
  take(kTokensMeasured / 2);
  const Watch watch;
  take(kTokensMeasured);
  watch.report(kTokensMeasured);
}

/// The lengths of a stream's samples, read once.
class LengthsInMemory final : public SampleLengths {
 public:
  explicit LengthsInMemory(const StreamFiles& files) {
    ShardStore store({files}, 0);
    for (uint32_t i = 0; i < files.shards.size(); ++i) {
      const auto ends = store.get({0, i})->token_ends();
      ends_.emplace_back(ends.begin(), ends.end());
    }
  }
  std::span<const uint32_t> token_ends(uint32_t, uint32_t shard) override { return ends_[shard]; }
  std::string path(uint32_t, uint32_t) override { return ""; }

 private:
  std::vector<std::vector<uint32_t>> ends_;
};

void pack(uint32_t seq_len, const std::string& directory) {
  const StreamFiles files = read_index(directory);
  LengthsInMemory lengths(files);
  OrderSpec spec;
  spec.finite = false;
  spec.counts = {1};
  spec.streams = {{"a", {}}};
  for (const StreamFiles::Entry& entry : files.shards) spec.streams[0].shard_sizes.push_back(entry.num_samples);
  const Order order(spec);
  LayoutSpec layout;
  layout.kind = LayoutKind::kPack;
  layout.seq_len = seq_len;
  layout.overflow = {Overflow::kTruncate};
  layout.groups = {0};
  const std::unique_ptr<Layout> rows = make_layout(layout, order, lengths);
  uint64_t samples = 0;
  uint64_t tokens = 0;
  uint64_t row = 0;
  const Watch watch;
  while (samples < 5'000'000) {
    Rows batch(1);
    for (uint32_t i = 0; i < kRows; ++i) rows->append_row(row++, batch);
    samples += batch.counts()[0].units;
    tokens += batch.counts()[0].tokens;
  }
  watch.report(samples, "samples", {{"fill", double(tokens) / double(row * seq_len)}});
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() == 3 && (arguments[0] == "bound" || arguments[0] == "shuffled")) {
    bound(std::stoul(arguments[1]), arguments[2], arguments[0] == "shuffled");
  } else if (arguments.size() > 1 && arguments[0] == "decode") {
    decode({arguments.begin() + 1, arguments.end()});
  } else if (arguments.size() > 2 && arguments[0] == "engine") {
    engine(static_cast<uint32_t>(std::stoul(arguments[1])), {arguments.begin() + 2, arguments.end()});
  } else if (arguments.size() == 3 && arguments[0] == "pack") {
    pack(static_cast<uint32_t>(std::stoul(arguments[1])), arguments[2]);
  } else {
    std::fputs(
        "usage: core_bench bound|shuffled RING_MIB FILE | decode DIRECTORY... | engine WORKERS DIRECTORY... |\n"
        "       pack SEQ_LEN DIRECTORY\n",
        stderr);
    return 2;
  }
}
