// The engine's promises on random data sets, specifications and thread counts. Run under ASan and TSan too.
#include "engine/engine.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <thread>

#include "base/error.h"
#include "fill/fill.h"
#include "mds_files.h"
#include "order/key.h"

namespace stoker {
namespace {

using namespace testing_files;
using Buffer = std::vector<std::byte>;
constexpr std::chrono::seconds kLong{60};
constexpr std::byte kUnwritten{0xAA};  // behind fields, up to the next one
constexpr std::chrono::nanoseconds kNow{0};

/// A data set of some streams on disk and a run over it.
class World {
 public:
  World(const std::vector<Form>& forms, Rng& rng) : forms_(forms) {
    for (uint32_t s = 0; s < forms.size(); ++s) {
      std::vector<ShardLengths> shards(1 + rng.below(5));
      for (ShardLengths& lengths : shards) {
        lengths.resize(1 + rng.below(60));  // up to some pages, so that framed shards have several pieces
        for (uint32_t& length : lengths) length = static_cast<uint32_t>(rng.below(400));
      }
      shards[0][0] = 50;
      files.push_back(write_stream(directory, "s" + std::to_string(s), shards, forms[s]));
      lengths_.push_back(shards);
    }
    seq_len = static_cast<uint32_t>(1 + rng.below(150));
    spec_.seed = rng.below(UINT64_MAX);
    spec_.lanes = static_cast<uint32_t>(1 + rng.below(5));
    spec_.global_batch = 6;
    spec_.drop_last = rng.below(2) == 0;
    spec_.shuffle_block = static_cast<uint32_t>(1 + rng.below(12));
    pack_window_ = static_cast<uint32_t>(1 + rng.below(40));
    static constexpr LayoutKind kKinds[] = {LayoutKind::kPad, LayoutKind::kConcat, LayoutKind::kPack};
    set_layout(kKinds[rng.below(3)]);
    reopen(uint64_t{1} << 30);
  }

  void set_layout(LayoutKind kind) {
    layout = LayoutSpec();
    layout.kind = kind;
    layout.seq_len = seq_len;
    layout.overflow.assign(files.size(), Overflow::kTruncate);
    layout.groups.assign(files.size(), 0);
    layout.pack_window = pack_window_;
    OrderSpec spec = spec_;
    if (kind == LayoutKind::kPack) {
      layout.overflow[0] = Overflow::kSplit;
      spec.finite = false;
      spec.drop_last = true;
    }
    spec.unit = kind == LayoutKind::kConcat ? seq_len : 1;
    for (uint32_t s = 0; s < files.size(); ++s) {
      StreamSizes sizes{files[s].name, {}};
      for (const ShardLengths& lengths : lengths_[s]) {
        uint64_t tokens = 0;
        for (const uint32_t length : lengths) tokens += length;
        sizes.shard_sizes.push_back(kind == LayoutKind::kConcat ? tokens : lengths.size());
      }
      spec.counts.push_back(7 + 5 * s);
      spec.streams.push_back(sizes);
    }
    order = std::make_shared<const Order>(spec);
  }

  void reopen(uint64_t cache_bytes) { store = std::make_shared<ShardStore>(files, cache_bytes); }

  BatchFormat format(uint32_t world_size = 1) const {
    BatchFormat format;
    format.fields = {{Field::kInputIds}, {Field::kLabels}, {Field::kSequenceId}, {Field::kStreamIds}};
    format.num_rows = static_cast<uint32_t>(spec_.global_batch) / world_size;
    format.seq_len = seq_len;
    format.is_packed = layout.kind == LayoutKind::kPack;
    return format;
  }

  std::unique_ptr<Planner> planner(uint64_t first_row = 0, RankSlice slice = {}) const {
    return std::make_unique<Planner>(store, order, layout, slice, first_row, LayoutStart{}, list);
  }

  /// Makes `list` anew, and the layout one that takes it. Returns chunks for it that are always the same.
  std::vector<SampleList::Chunk> list_samples(bool is_packed, size_t most_ahead) {
    std::vector<SampleList::Stream> streams;
    uint64_t num_samples = 0;
    for (uint32_t s = 0; s < files.size(); ++s) {
      streams.push_back({s, {}});
      for (const ShardLengths& lengths : lengths_[s]) {
        streams.back().shard_sizes.push_back(lengths.size());
        num_samples += lengths.size();
      }
    }
    list = std::make_shared<SampleList>(streams, most_ahead);
    set_layout(is_packed ? LayoutKind::kPack : LayoutKind::kPad);
    layout.packing = LayoutSpec::Packing::kFoundry;
    layout.overflow.assign(files.size(), Overflow::kTruncate);
    layout.window_rows = 6;
    layout.num_packers = 2;
    Rng rng(1);
    std::vector<SampleList::Chunk> chunks(4);
    for (SampleList::Chunk& chunk : chunks)
      for (int batch = 0; batch < 3; ++batch) {
        for (int i = 0; i < (is_packed ? 15 : 6); ++i) chunk.samples.push_back(rng.below(num_samples));
        chunk.batch_ends.push_back(static_cast<uint32_t>(chunk.samples.size()));
      }
    return chunks;
  }

  Engine::Pointer engine(uint32_t workers, uint64_t first_row = 0, RankSlice slice = {}) const {
    return Engine::create(planner(first_row, slice), store, format(slice.world_size), workers);
  }

  /// Takes batches from an engine, `in_flight` buffers at a time.
  std::vector<Buffer> take(Engine& engine, size_t num_batches, size_t in_flight, uint32_t world_size = 1) const {
    std::deque<Buffer> submitted;
    std::vector<Buffer> out;
    while (out.size() < num_batches) {
      while (submitted.size() < in_flight) {
        submitted.emplace_back(format(world_size).size_bytes(), kUnwritten);
        engine.submit(submitted.back().data());
      }
      if (!engine.wait(kLong)) throw std::runtime_error("no batch: " + engine.waiting_for());
      engine.next();
      out.push_back(std::move(submitted.front()));
      submitted.pop_front();
    }
    engine.close();
    return out;
  }

  /// The same by the definition: planned one by one, tokens from token_at.
  std::vector<Buffer> expected(size_t num_batches) const {
    const std::unique_ptr<Planner> plans = planner();
    std::vector<Buffer> out;
    for (size_t b = 0; b < num_batches; ++b) {
      const BatchPlan plan = plans->next();
      std::vector<int64_t> ids, labels, documents, streams;
      for (uint32_t r = 0; r < plan.rows.size(); ++r) {
        int64_t document = 0;
        for (const Segment& s : plan.rows.row(r)) {
          for (uint32_t i = s.token_begin; i < s.token_end; ++i) {
            ids.push_back(token_at(files[s.stream].name, s.shard, s.sample, i));
            const bool is_masked = layout.kind == LayoutKind::kPack && i == s.token_begin && document > 0;
            const int64_t label = forms_[s.stream].labels ? label_at(files[s.stream].name, s.shard, s.sample, i,
                                                                     lengths_[s.stream][s.shard][s.sample])
                                                          : ids.back();
            labels.push_back(is_masked ? -100 : label);
            documents.push_back(document);
            streams.push_back(s.stream);
          }
          document += s.size() > 0;
        }
        const size_t end = size_t{r + 1} * seq_len;
        ids.resize(end, 0);
        labels.resize(end, -100);
        documents.resize(end, -1);
        streams.resize(end, -1);
      }
      Buffer& buffer = out.emplace_back();
      for (const auto& field : {ids, labels, documents, streams}) {
        const auto* begin = reinterpret_cast<const std::byte*>(field.data());
        buffer.insert(buffer.end(), begin, begin + field.size() * sizeof(int64_t));
        buffer.resize(ceil_div(buffer.size(), BatchFormat::kAlignment) * BatchFormat::kAlignment, kUnwritten);
      }
    }
    return out;
  }

  std::string path(uint32_t stream, uint32_t shard) const {
    const StreamFiles::Entry& entry = files[stream].shards[shard];
    return files[stream].directory + "/" + (entry.zip_basename.empty() ? entry.raw_basename : entry.zip_basename);
  }

  TemporaryDirectory directory;
  std::vector<StreamFiles> files;
  uint32_t seq_len = 0;
  LayoutSpec layout;
  std::shared_ptr<const Order> order;
  std::shared_ptr<SampleList> list;  // null: there is none
  std::shared_ptr<ShardStore> store;

 private:
  const std::vector<Form> forms_;
  std::vector<std::vector<ShardLengths>> lengths_;
  OrderSpec spec_;
  uint32_t pack_window_ = 0;
};

const std::vector<Form> kForms = {{},
                                  {.bytes_column = true},
                                  {.compressed = true, .frame_bytes = 200},
                                  {.other_column = true, .compressed = true, .frame_bytes = 0},
                                  {.compressed = true, .frame_bytes = 500, .labels = true}};

TEST(Engine, BatchesAreTheSameForAnyWorkersPrefetchCacheAndWay) {
  Rng rng(key("same batches"));
  for (int trial = 0; trial < 12; ++trial) {
    World world(kForms, rng);
    const size_t num_batches = 12;
    const std::vector<Buffer> want = world.expected(num_batches);
    for (const uint32_t workers : {0U, 1U, 2U, 5U, 16U}) {
      for (const uint64_t cache_bytes : {uint64_t{0}, uint64_t{1000}, uint64_t{1} << 30}) {
        world.reopen(cache_bytes);
        ASSERT_EQ(world.take(*world.engine(workers), num_batches, 1 + rng.below(6)), want)
            << "trial " << trial << ", " << workers << " workers";
      }
    }
    for (StreamFiles& files : world.files) files.expand_directory = world.directory / "expanded" + files.name;
    world.reopen(0);
    ASSERT_EQ(world.take(*world.engine(3), num_batches, 4), want);
  }
}

TEST(Engine, RanksTogetherAndAnyPointOfResumeGiveTheGlobalBatches) {
  Rng rng(key("ranks"));
  for (int trial = 0; trial < 12; ++trial) {
    World world(kForms, rng);
    const size_t num_batches = 10;
    const std::vector<Buffer> want = world.expected(num_batches);
    for (const uint32_t world_size : {1U, 2U, 3U, 6U}) {
      const uint64_t first = rng.below(num_batches);
      const size_t rows = 6 / world_size;
      const BatchFormat format = world.format(world_size);
      const size_t row_bytes = format.row_bytes(format.fields[0]);
      const size_t field_bytes = format.field_bytes(format.fields[0]);
      const size_t global_field_bytes = world.format().field_bytes(format.fields[0]);
      for (uint32_t rank = 0; rank < world_size; ++rank) {
        const std::vector<Buffer> got =
            world.take(*world.engine(2, 6 * first, {rank, world_size}), num_batches - first, 3, world_size);
        for (size_t b = 0; b < got.size(); ++b)
          for (size_t field = 0; field < 4; ++field)
            for (size_t i = 0; i < rows; ++i) {
              const std::byte* mine = got[b].data() + field * field_bytes + i * row_bytes;
              const std::byte* whole =
                  want[first + b].data() + field * global_field_bytes + (rank + i * world_size) * row_bytes;
              ASSERT_EQ(std::memcmp(mine, whole, row_bytes), 0);
            }
      }
    }
  }
}

TEST(Engine, AnErrorComesInItsPlaceAndStays) {
  Rng rng(key("errors"));
  for (int trial = 0; trial < 20; ++trial) {
    World world(kForms, rng);
    const size_t num_batches = 30;
    const std::vector<Buffer> want = world.expected(num_batches);
    const auto stream = static_cast<uint32_t>(rng.below(world.files.size()));
    const auto shard = static_cast<uint32_t>(rng.below(world.files[stream].shards.size()));
    std::filesystem::resize_file(world.path(stream, shard), 10);
    world.reopen(uint64_t{1} << 30);

    // The first batch that reads the shard.
    size_t failing = 0;
    {
      const std::unique_ptr<Planner> plans = world.planner();
      try {
        for (; failing < num_batches; ++failing) plans->next();
      } catch (const CorruptShardError&) {
      }
    }
    for (const uint32_t workers : {0U, 1U, 4U}) {
      world.reopen(uint64_t{1} << 30);
      std::vector<Buffer> buffers(num_batches, Buffer(world.format().size_bytes(), kUnwritten));
      const Engine::Pointer engine = world.engine(workers);
      for (Buffer& buffer : buffers) engine->submit(buffer.data());
      for (size_t b = 0; b < failing; ++b) {
        ASSERT_TRUE(engine->wait(kLong));
        ASSERT_EQ(engine->next().end_row, 6 * (b + 1));
        ASSERT_EQ(buffers[b], want[b]);
      }
      if (failing == num_batches) continue;
      for (int again = 0; again < 3; ++again) {
        ASSERT_TRUE(engine->wait(kLong));
        try {
          engine->next();
          FAIL() << "no error";
        } catch (const CorruptShardError& error) {
          EXPECT_EQ(error.path, world.path(stream, shard));
        }
      }
    }
  }
}

TEST(Engine, ACorruptPieceFailsItsBatchOnly) {
  Rng rng(key("pieces"));
  for (int trial = 0; trial < 10; ++trial) {
    World world({{.compressed = true, .frame_bytes = 300}, {}}, rng);
    const size_t num_batches = 60;
    const std::vector<Buffer> want = world.expected(num_batches);
    const std::string path = world.path(0, 0);
    Bytes bytes = read_file(path);
    bytes[bytes.size() - 1] ^= std::byte{1};  // the checksum of the last frame, in the last piece
    write_file(path, bytes);
    world.reopen(uint64_t{1} << 30);
    const std::shared_ptr<const Shard> shard = world.store->get({0, 0});

    // The first batch with a sample that reaches into the last piece.
    const std::unique_ptr<Planner> plans = world.planner();
    size_t failing = 0;
    for (; failing < num_batches; ++failing) {
      const BatchPlan plan = plans->next();
      const auto segments = plan.rows.segments();
      if (std::any_of(segments.begin(), segments.end(), [&](const Segment& s) {
            if (s.stream != 0 || s.shard != 0) return false;
            const uint64_t last_byte = shard->bytes_of({s.sample, s.sample + uint64_t{1}}).end - 1;
            return shard->body().piece_at(last_byte) == shard->body().num_pieces() - 1;
          }))
        break;
    }
    std::vector<Buffer> buffers(num_batches, Buffer(world.format().size_bytes(), kUnwritten));
    const Engine::Pointer engine = world.engine(3);
    for (Buffer& buffer : buffers) engine->submit(buffer.data());
    for (size_t b = 0; b < failing; ++b) {
      ASSERT_TRUE(engine->wait(kLong));
      engine->next();
      ASSERT_EQ(buffers[b], want[b]);
    }
    if (failing == num_batches) continue;
    ASSERT_TRUE(engine->wait(kLong));
    EXPECT_THROW(engine->next(), CorruptShardError);
  }
}

TEST(Engine, AFileThatIsCutWhileItIsReadNeverGivesWrongTokens) {
  Rng rng(key("cut"));
  int hits = 0;
  for (int trial = 0; trial < 40; ++trial) {
    World world({{}}, rng);
    const size_t num_batches = 40;
    const std::vector<Buffer> want = world.expected(num_batches);
    std::vector<Buffer> buffers(num_batches, Buffer(world.format().size_bytes(), kUnwritten));
    const Engine::Pointer engine = world.engine(6);
    for (Buffer& buffer : buffers) engine->submit(buffer.data());
    const uint64_t cut_after = rng.below(num_batches);
    try {
      for (size_t b = 0; b < num_batches; ++b) {
        if (b == cut_after)
          for (uint32_t shard = 0; shard < world.files[0].shards.size(); ++shard)
            std::filesystem::resize_file(world.path(0, shard), 0);
        ASSERT_TRUE(engine->wait(kLong));
        engine->next();
        ASSERT_EQ(buffers[b], want[b]) << "trial " << trial;
      }
    } catch (const CorruptShardError&) {
      ++hits;
    }
  }
  EXPECT_GT(hits, 0);
}

TEST(Engine, AnEpochIsItsCountsForAnyWorkers) {
  Rng rng(key("counts"));
  for (int trial = 0; trial < 10; ++trial) {
    World world(kForms, rng);
    world.set_layout(trial % 2 == 0 ? LayoutKind::kPad : LayoutKind::kConcat);
    const OrderSpec& spec = world.order->spec();
    const uint64_t units = spec.epoch_units();
    const uint64_t batches = spec.drop_last ? units : (units + 5) / 6;  // six epochs without a gap, or one
    const Engine::Pointer engine = world.engine(static_cast<uint32_t>(rng.below(17)));
    Buffer buffer(world.format().size_bytes(), kUnwritten);
    std::vector<uint64_t> got(spec.counts.size());
    for (uint64_t b = 0; b < batches; ++b) {
      engine->submit(buffer.data());
      ASSERT_TRUE(engine->wait(kLong));
      const BatchInfo info = engine->next();
      for (size_t s = 0; s < got.size(); ++s) got[s] += info.counts[s].units;
    }
    for (size_t s = 0; s < got.size(); ++s) EXPECT_EQ(got[s], spec.counts[s] * (spec.drop_last ? 6 : 1));
  }
}

TEST(Engine, ClosesErrorsAndRestartsOnTheSameShardsChangeNoBatch) {
  Rng rng(key("closes, errors, restarts"));
  for (int round = 0; round < 6; ++round) {
    World world(kForms, rng);
    const size_t num_batches = 20;
    const std::vector<Buffer> want = world.expected(num_batches);
    world.reopen(rng.below(3) * 1000);
    for (int trial = 0; trial < 25; ++trial) {
      const std::string path = world.path(static_cast<uint32_t>(rng.below(kForms.size())), 0);
      const bool is_lost = rng.below(3) == 0;
      if (is_lost) std::filesystem::rename(path, path + ".lost");
      const size_t first = rng.below(num_batches);
      std::vector<Buffer> buffers(1 + rng.below(num_batches - first), Buffer(world.format().size_bytes(), kUnwritten));
      const Engine::Pointer engine = world.engine(static_cast<uint32_t>(rng.below(17)), 6 * first);
      for (Buffer& buffer : buffers) engine->submit(buffer.data());
      const size_t taken = rng.below(buffers.size() + 1);
      try {
        for (size_t b = 0; b < taken; ++b) {
          ASSERT_TRUE(engine->wait(kLong));
          engine->next();
          ASSERT_EQ(buffers[b], want[first + b]);
        }
      } catch (const SystemError& error) {
        ASSERT_TRUE(is_lost);
        EXPECT_EQ(error.path, path);
      }
      engine->close();
      if (is_lost) std::filesystem::rename(path + ".lost", path);
    }
    EXPECT_EQ(world.take(*world.engine(3), num_batches, 4), want);
  }
}

TEST(Engine, CanBeClosedAtAnyMomentAndStartedAgainOnTheSameShards) {
  Rng rng(key("closes"));
  World world(kForms, rng);
  const std::vector<Buffer> want = world.expected(8);
  for (int trial = 0; trial < 60; ++trial) {
    if (trial % 10 == 0) world.reopen(rng.below(3) * 1000);
    std::vector<Buffer> buffers(1 + rng.below(8), Buffer(world.format().size_bytes(), kUnwritten));
    const Engine::Pointer engine = world.engine(static_cast<uint32_t>(rng.below(4)));
    for (Buffer& buffer : buffers) engine->submit(buffer.data());
    for (uint64_t taken = rng.below(buffers.size()); taken > 0; --taken) {
      ASSERT_TRUE(engine->wait(kLong));
      engine->next();
    }
    engine->close();
    engine->close();
    EXPECT_THROW(engine->submit(buffers[0].data()), ClosedError);
    EXPECT_THROW(engine->wait(kNow), ClosedError);
    EXPECT_THROW(engine->next(), ClosedError);
  }
  EXPECT_EQ(world.take(*world.engine(2), 8, 3), want);
}

/// A stream whose one piece takes some hundred milliseconds to decode.
class SlowWorld : public World {
 public:
  explicit SlowWorld(Rng& rng) : World({{.compressed = true}}, rng) {
    // One sample of 2^28 tokens of 0: a frame of 2^29 bytes raw, a few dozen kilobytes compressed.
    Bytes raw = raw_shard("s0", 0, {0}, {.bytes_column = true});
    raw.resize(raw.size() + (size_t{1} << 29));
    const auto end = static_cast<uint32_t>(raw.size());
    std::memcpy(raw.data() + 8, &end, 4);
    const uint32_t values = uint32_t{1} << 29;
    std::memcpy(raw.data() + raw.size() - values - 4, &values, 4);
    files.resize(1);
    files[0].schemas = {schema_of({.bytes_column = true})};
    files[0].shards.resize(1);
    files[0].shards[0].num_samples = 1;
    files[0].shards[0].raw_bytes = raw.size();
    const Bytes zip = compress(raw, raw.size());
    files[0].shards[0].zip_bytes = zip.size();
    write_file(path(0, 0), zip);
    set_layout(LayoutKind::kConcat);
    OrderSpec spec = order->spec();
    spec.streams = {{"s0", {uint64_t{1} << 28}}};
    spec.unit = seq_len;
    spec.drop_last = true;
    order = std::make_shared<const Order>(spec);
    layout.kind = LayoutKind::kConcat;
    reopen(uint64_t{1} << 30);
  }
};

TEST(Engine, ClosingWakesAConsumerThatWaits) {
  Rng rng(key("wakes"));
  const SlowWorld world(rng);
  Buffer buffer(world.format().size_bytes(), kUnwritten);
  const Engine::Pointer engine = world.engine(1);
  EXPECT_THROW(engine->wait(kNow), ArgumentError);  // nothing is submitted: it would wait for ever
  engine->submit(buffer.data());
  std::atomic<bool> was_told = false;
  std::thread consumer([&] {
    try {
      engine->wait(std::chrono::hours(1000));  // a wait that nobody wakes ends with the test's timeout
    } catch (const ClosedError&) {
      was_told = true;
    }
  });
  while (engine->waiting_for().find("piece(s) of compressed shards") == std::string::npos) std::this_thread::yield();
  engine->close();
  consumer.join();
  EXPECT_TRUE(was_told);
}

TEST(Engine, ClosingWaitsForAConsumerThatDoesTheWork) {
  Rng rng(key("no workers"));
  World world(kForms, rng);
  for (int trial = 0; trial < 20; ++trial) {
    std::vector<Buffer> buffers(500, Buffer(world.format().size_bytes(), kUnwritten));
    const Engine::Pointer engine = world.engine(0);
    for (Buffer& buffer : buffers) engine->submit(buffer.data());
    std::atomic<int> taken = 0;
    std::thread consumer([&] {
      try {
        for (size_t b = 0; b < buffers.size(); ++b) {
          engine->wait(kLong);
          engine->next();
          ++taken;
        }
      } catch (const ClosedError&) {
      }
    });
    while (taken < trial) std::this_thread::yield();
    engine->close();
    for (Buffer& buffer : buffers) buffer.assign(buffer.size(), std::byte{0});  // nobody writes them any more
    consumer.join();
  }
}

TEST(Engine, ManyMayCloseAtOnce) {
  Rng rng(key("many close"));
  World world(kForms, rng);
  for (int trial = 0; trial < 20; ++trial) {
    std::vector<Buffer> buffers(4, Buffer(world.format().size_bytes(), kUnwritten));
    const Engine::Pointer engine = world.engine(2);
    for (Buffer& buffer : buffers) engine->submit(buffer.data());
    std::vector<std::thread> closers;
    for (int i = 0; i < 4; ++i) closers.emplace_back([&] { engine->close(); });
    for (std::thread& closer : closers) closer.join();
    EXPECT_THROW(engine->next(), ClosedError);
  }
}

TEST(Engine, NextBeforeWaitIsRefused) {
  Rng rng(key("early"));
  World world({{}}, rng);
  Buffer buffer(world.format().size_bytes(), kUnwritten);
  const Engine::Pointer engine = world.engine(0);
  engine->submit(buffer.data());
  EXPECT_THROW(engine->next(), ArgumentError);
  EXPECT_EQ(engine->waiting_for(), "the batch is waiting to be planned");
  EXPECT_FALSE(engine->wait(kNow));  // no worker, and no time to do the work in
  EXPECT_TRUE(engine->wait(kLong));
  EXPECT_EQ(engine->waiting_for(), "nothing: the batch is ready");
}

TEST(Engine, AForkedChildIsToldAndLeavesTheEngineAlone) {
  Rng rng(key("fork"));
  World world({{}}, rng);
  Buffer buffer(world.format().size_bytes(), kUnwritten);
  Engine::Pointer engine = world.engine(2);
  engine->submit(buffer.data());
  const pid_t child = ::fork();
  if (child == 0) {
    int refused = 0;
    try {
      engine->wait(kLong);
    } catch (const ClosedError&) {
      ++refused;
    }
    try {
      engine->submit(buffer.data());
    } catch (const ClosedError&) {
      ++refused;
    }
    try {
      engine->check_process();
    } catch (const ClosedError&) {
      ++refused;
    }
    engine->close();
    engine.reset();
    ::_exit(refused == 3 ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  EXPECT_TRUE(engine->wait(kLong));
}

TEST(Engine, ProgressCountsWhatWasHandedOver) {
  Rng rng(key("progress"));
  World world({{}, {}}, rng);
  world.set_layout(LayoutKind::kConcat);
  Buffer buffer(world.format().size_bytes(), kUnwritten);
  const Engine::Pointer engine = world.engine(1);
  for (int b = 0; b < 4; ++b) {
    engine->submit(buffer.data());
    ASSERT_TRUE(engine->wait(kLong));
    engine->next();
  }
  const Progress progress = engine->progress();
  EXPECT_EQ(progress.num_batches, 4U);
  EXPECT_EQ(progress.counts[0].units + progress.counts[1].units, 19U + (world.order->spec().drop_last ? 5U : 0U));
  EXPECT_EQ(progress.counts[0].tokens + progress.counts[1].tokens,
            (progress.counts[0].units + progress.counts[1].units) * world.seq_len);
}

// ---------------------------------------------------------------- shards that are supplied while the run goes on
/// Supplies the shards of a store that are wanted, in threads of its own, until it is destroyed.
class Supplier {
 public:
  using Supply = std::function<void(ShardSupply&, ShardId)>;
  Supplier(std::shared_ptr<ShardStore> store, const Supply& supply) : store_(std::move(store)) {
    for (int i = 0; i < 2; ++i)
      threads_.emplace_back([this, supply] {
        while (const auto id = store_->supply().take()) {
          supply(store_->supply(), *id);
          ++num_supplied;
        }
      });
  }
  Supplier(const Supplier&) = delete;
  Supplier& operator=(const Supplier&) = delete;
  ~Supplier() {
    store_->supply().close();
    for (std::thread& thread : threads_) thread.join();
  }
  std::atomic<int> num_supplied = 0;

 private:
  std::shared_ptr<ShardStore> store_;
  std::vector<std::thread> threads_;
};

const std::vector<Form> kMadeForms = {{}, {.bytes_column = true}, {.compressed = true, .frame_bytes = 200}};

void supply_streams(World& world, StreamFiles::Supply how) {
  const size_t num_streams = how == StreamFiles::Supply::kMade ? 2 : world.files.size();
  for (size_t s = 0; s < num_streams; ++s) world.files[s].supply = how;
  world.reopen(uint64_t{1} << 30);
}

SuppliedFile supplied_file(const World& world, ShardId id) {
  const bool is_compressed = !world.files[id.stream].shards[id.shard].zip_basename.empty();
  return {std::make_shared<File>(world.path(id.stream, id.shard)), is_compressed};
}

TEST(Engine, BatchesAreTheSameWhereShardsAreSuppliedAndThoseThatAreOpenAreNotSuppliedAgain) {
  Rng rng(key("made"));
  for (int trial = 0; trial < 20; ++trial) {
    for (const auto how : {StreamFiles::Supply::kMade, StreamFiles::Supply::kFetched}) {
      World world(how == StreamFiles::Supply::kMade ? kMadeForms : kForms, rng);
      const std::vector<Buffer> want = world.expected(12);
      for (const uint32_t workers : {0U, 1U, 3U}) {
        supply_streams(world, how);
        Supplier supplier(world.store, [&](ShardSupply& supply, ShardId id) {
          std::this_thread::yield();
          supply.set_ready(id, supplied_file(world, id));
        });
        ASSERT_EQ(world.take(*world.engine(workers), 7, 1 + rng.below(4)), std::vector(want.begin(), want.begin() + 7));
        ASSERT_EQ(world.take(*world.engine(workers), 12, 3), want);
        const int before = supplier.num_supplied;
        ASSERT_EQ(world.take(*world.engine(workers), 12, 3), want);
        ASSERT_LE(supplier.num_supplied - before, 2 * 4) << "ahead of the end of the run before at most";
        for (const ShardId id : world.store->held()) FAIL() << id.shard << " is held by nobody";
      }
    }
  }
}

TEST(Engine, WhatAMissingShardHadIsPaddingOrNotThereAndTheRestIsAsPlanned) {
  Rng rng(key("missing"));
  for (int trial = 0; trial < 20; ++trial) {
    World world(kForms, rng);
    for (const LayoutKind layout : {LayoutKind::kPad, LayoutKind::kConcat, LayoutKind::kPack}) {
      world.set_layout(layout);
      supply_streams(world, StreamFiles::Supply::kFetched);
      const auto is_missing = [&](ShardId id) { return id.shard % 2 == 1; };
      const Supplier supplier(world.store, [&](ShardSupply& supply, ShardId id) {
        supply.set_ready(id, is_missing(id) ? SuppliedFile{} : supplied_file(world, id));
      });
      const std::unique_ptr<Planner> plans = world.planner();
      for (int batch = 0; batch < 4; ++batch) {
        const BatchPlan plan = plans->next();
        for (const Segment& segment : plan.rows.segments())
          ASSERT_TRUE(segment.size() == 0 || !is_missing({segment.stream, segment.shard}));
      }
      const std::vector<Buffer> want = world.expected(6);
      ASSERT_EQ(world.take(*world.engine(2), 6, 3), want);
    }
  }
}

TEST(Engine, AShardThatCanNotBeMadeIsAnErrorInItsPlaceAndIsTriedAgainByTheNextRun) {
  Rng rng(key("not made"));
  for (int trial = 0; trial < 20; ++trial) {
    World world(kMadeForms, rng);
    const std::vector<Buffer> want = world.expected(12);
    supply_streams(world, StreamFiles::Supply::kMade);
    std::atomic<bool> is_broken = true;
    const Supplier supplier(world.store, [&](ShardSupply& supply, ShardId id) {
      if (is_broken && id == ShardId{0, 0}) {
        supply.set_failed(id, std::make_exception_ptr(SupplyError("broken")));
      } else {
        supply.set_ready(id, supplied_file(world, id));
      }
    });
    size_t failing = 0;
    try {
      for (const std::unique_ptr<Planner> plans = world.planner();; ++failing) plans->next();
    } catch (const SupplyError&) {
    }
    std::vector<Buffer> buffers(failing + 1, Buffer(world.format().size_bytes(), kUnwritten));
    {
      const Engine::Pointer engine = world.engine(2);
      for (Buffer& buffer : buffers) engine->submit(buffer.data());
      for (size_t b = 0; b < failing; ++b) {
        ASSERT_TRUE(engine->wait(kLong));
        engine->next();
        if (b < want.size()) {
          ASSERT_EQ(buffers[b], want[b]);
        }
      }
      for (int again = 0; again < 2; ++again) {
        ASSERT_TRUE(engine->wait(kLong));
        EXPECT_THROW(engine->next(), SupplyError);
      }
    }
    is_broken = false;
    ASSERT_EQ(world.take(*world.engine(2), 12, 3), want);
  }
}

TEST(Engine, ClosingEndsTheWaitForAShardAndTheTimeoutTellsWhichOne) {
  Rng rng(key("waits for a shard"));
  for (const uint32_t workers : {0U, 2U}) {
    World world({{}}, rng);
    world.files[0].supply = StreamFiles::Supply::kMade;
    world.reopen(uint64_t{1} << 30);
    Buffer buffer(world.format().size_bytes());
    const Engine::Pointer engine = world.engine(workers);
    engine->submit(buffer.data());
    while (!world.store->supply().awaited()) EXPECT_FALSE(engine->wait(std::chrono::milliseconds(1)));
    EXPECT_NE(engine->waiting_for().find("of stream \"s0\", which is being prepared"), std::string::npos);
    engine->close();
    EXPECT_THROW(engine->wait(kNow), ClosedError);
  }
}

// ---------------------------------------------------------------- listed samples
TEST(Engine, BatchesAreTheSameWhereSamplesAreListedMeanwhile) {
  Rng rng(key("listed"));
  for (int trial = 0; trial < 10; ++trial) {
    for (const bool is_packed : {false, true}) {
      World world(kForms, rng);
      for (const SampleList::Chunk& chunk : world.list_samples(is_packed, 4)) world.list->push(chunk);
      const std::vector<Buffer> want = world.expected(12);
      for (const uint32_t workers : {0U, 1U, 4U}) {
        const std::vector<SampleList::Chunk> chunks = world.list_samples(is_packed, 1);
        std::thread lister([&] {
          for (const SampleList::Chunk& chunk : chunks) world.list->push(chunk);
        });
        ASSERT_EQ(world.take(*world.engine(workers), 12, 1 + rng.below(4)), want);
        lister.join();
        for (const ShardId id : world.store->held()) FAIL() << id.shard << " is held by nobody";
      }
    }
  }
}

TEST(Engine, WhatTheListerFailsWithComesInItsPlaceAndStays) {
  Rng rng(key("lister fails"));
  World world(kForms, rng);
  const std::vector<SampleList::Chunk> chunks = world.list_samples(false, 4);
  world.list->push(chunks[0]);
  world.list->fail(std::make_exception_ptr(SupplyError("no order")));
  std::vector<Buffer> buffers(5, Buffer(world.format().size_bytes()));
  const Engine::Pointer engine = world.engine(2);
  for (Buffer& buffer : buffers) engine->submit(buffer.data());
  for (int batch = 0; batch < 3; ++batch) {
    ASSERT_TRUE(engine->wait(kLong));
    EXPECT_EQ(engine->next().num_rows, 6U);
  }
  for (int again = 0; again < 2; ++again) {
    ASSERT_TRUE(engine->wait(kLong));
    EXPECT_THROW(engine->next(), SupplyError);
  }
}

TEST(Engine, ClosingEndsTheWaitForTheOrder) {
  Rng rng(key("waits for the order"));
  for (const uint32_t workers : {0U, 2U}) {
    World world(kForms, rng);
    world.list_samples(true, 1);
    Buffer buffer(world.format().size_bytes());
    const Engine::Pointer engine = world.engine(workers);
    engine->submit(buffer.data());
    while (!world.list->is_awaited()) EXPECT_FALSE(engine->wait(std::chrono::milliseconds(1)));
    EXPECT_NE(engine->waiting_for().find("the order of the epoch is being worked out"), std::string::npos);
    EXPECT_FALSE(engine->wait(std::chrono::milliseconds(1)));
    engine->close();
    EXPECT_FALSE(world.list->push({{0}, {1}}));
    EXPECT_GT(engine->progress().supply_s, 0);
  }
}

TEST(Engine, ABatchTellsItsRows) {
  Rng rng(key("rows told"));
  World world({{}}, rng);
  world.list_samples(false, 1);
  world.list->push({{0, 0, 0}, {3}});
  Buffer buffer(world.format().size_bytes());
  const Engine::Pointer engine = world.engine(1);
  engine->submit(buffer.data());
  ASSERT_TRUE(engine->wait(kLong));
  const BatchInfo info = engine->next();
  const uint32_t tokens = std::min(world.seq_len, 50U);  // shard 0 begins with a sample of 50
  EXPECT_EQ(info.num_rows, 3U);
  EXPECT_EQ(info.row_tokens, (std::vector<uint32_t>{tokens, tokens, tokens, 0, 0, 0}));
  EXPECT_EQ(info.row_loss, (std::vector<uint32_t>{tokens - 1, tokens - 1, tokens - 1, 0, 0, 0}));
}

TEST(Engine, WhatLiesUnderTheBlockAtHandIsWantedBeforeAnythingIsWaitedFor) {
  const TemporaryDirectory directory;
  std::vector<StreamFiles> files = {write_stream(directory, "web", std::vector(5, ShardLengths{4, 4}), {})};
  files[0].supply = StreamFiles::Supply::kMade;
  const auto store = std::make_shared<ShardStore>(files, 0);
  OrderSpec spec;
  spec.streams = {{"web", {2, 2, 2, 2, 2}}};
  spec.counts = {10};
  spec.global_batch = 1;
  LayoutSpec layout;
  layout.kind = LayoutKind::kPad;
  layout.seq_len = 4;
  layout.overflow = {Overflow::kTruncate};
  auto planner = std::make_unique<Planner>(store, std::make_shared<const Order>(spec), layout, RankSlice{}, 0);
  BatchFormat format;
  format.fields = {{Field::kInputIds}};
  format.num_rows = 1;
  format.seq_len = 4;
  Buffer buffer(format.size_bytes());
  const Engine::Pointer engine = Engine::create(std::move(planner), store, format, 1);
  engine->submit(buffer.data());
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(store->supply().take());  // blocks where one is not wanted
}

}  // namespace
}  // namespace stoker
