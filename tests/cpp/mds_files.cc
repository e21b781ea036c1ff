#include "mds_files.h"

#include <stdlib.h>
#include <zstd.h>

#include <cstring>
#include <fstream>
#include <stdexcept>

#include "order/key.h"

namespace stoker::testing_files {
namespace {

template <typename T>
void append(Bytes& out, T value) {
  const auto* begin = reinterpret_cast<const std::byte*>(&value);
  out.insert(out.end(), begin, begin + sizeof(T));
}

void append(Bytes& out, const std::string& text) {
  const auto* begin = reinterpret_cast<const std::byte*>(text.data());
  out.insert(out.end(), begin, begin + text.size());
}

// Of an ndarray of one dimension: ndim and the width code, then the shape.
Bytes array_header(uint32_t length) {
  Bytes out;
  const uint8_t code = length < 256 ? 0 : length < 65536 ? 1 : 2;
  append(out, static_cast<uint8_t>(4 | code));
  if (code == 0) append(out, static_cast<uint8_t>(length));
  if (code == 1) append(out, static_cast<uint16_t>(length));
  if (code == 2) append(out, length);
  return out;
}

Bytes sample_bytes(const std::string& stream, uint32_t shard, uint32_t sample, uint32_t length, const Form& form) {
  std::vector<Bytes> columns;
  if (form.other_column) columns.emplace_back(sample % 5, std::byte{'x'});
  Bytes& tokens = columns.emplace_back(form.bytes_column ? Bytes() : array_header(length));
  for (uint32_t i = 0; i < length; ++i) append(tokens, token_at(stream, shard, sample, i));
  if (form.labels) {
    Bytes& labels = columns.emplace_back(array_header(length));
    for (uint32_t i = 0; i < length; ++i) append(labels, label_at(stream, shard, sample, i, length));
  }
  Bytes out;
  for (const Bytes& column : columns) append(out, static_cast<uint32_t>(column.size()));
  for (const Bytes& column : columns) out.insert(out.end(), column.begin(), column.end());
  return out;
}

}  // namespace

TemporaryDirectory::TemporaryDirectory() {
  std::string name = (std::filesystem::temp_directory_path() / "stoker_XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary directory");
  path_ = name;
}

TemporaryDirectory::~TemporaryDirectory() { std::filesystem::remove_all(path_); }

uint16_t token_at(const std::string& stream, uint32_t shard, uint32_t sample, uint32_t i) {
  return static_cast<uint16_t>(key(stream, shard, sample, i) % 50000);
}

int32_t label_at(const std::string& stream, uint32_t shard, uint32_t sample, uint32_t i, uint32_t length) {
  return sample % 5 == 4 || i < length / 3 ? -100 : token_at(stream, shard, sample, i);
}

Bytes raw_shard(const std::string& stream, uint32_t shard, const ShardLengths& lengths, const Form& form) {
  const std::string config = "{\"a config\": \"that nobody reads\"}";
  std::vector<Bytes> samples;
  for (uint32_t i = 0; i < lengths.size(); ++i) samples.push_back(sample_bytes(stream, shard, i, lengths[i], form));
  Bytes out;
  append(out, static_cast<uint32_t>(lengths.size()));
  auto offset = static_cast<uint32_t>(4 + 4 * (lengths.size() + 1) + config.size());
  append(out, offset);
  for (const Bytes& sample : samples) append(out, offset += static_cast<uint32_t>(sample.size()));
  append(out, config);
  for (const Bytes& sample : samples) out.insert(out.end(), sample.begin(), sample.end());
  return out;
}

Bytes compress(const Bytes& raw, size_t frame_bytes) {
  const std::unique_ptr<ZSTD_CCtx, size_t (*)(ZSTD_CCtx*)> context(ZSTD_createCCtx(), ZSTD_freeCCtx);
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_contentSizeFlag, frame_bytes > 0);
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_checksumFlag, 1);
  const size_t whole = frame_bytes > 0 ? frame_bytes : raw.size();
  Bytes out;
  Bytes frame(ZSTD_compressBound(raw.size()));
  for (size_t begin = 0; begin < raw.size(); begin += whole) {
    const size_t take = std::min(whole, raw.size() - begin);
    const size_t size = ZSTD_compress2(context.get(), frame.data(), frame.size(), raw.data() + begin, take);
    out.insert(out.end(), frame.begin(), frame.begin() + static_cast<std::ptrdiff_t>(size));
  }
  return out;
}

void write_file(const std::string& path, const Bytes& bytes) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  if (!file) throw std::runtime_error("cannot write " + path);
}

Bytes read_file(const std::string& path) {
  Bytes bytes(std::filesystem::file_size(path));
  std::ifstream file(path, std::ios::binary);
  file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  return bytes;
}

Schema schema_of(const Form& form) {
  Schema schema;
  if (form.other_column) schema.columns.push_back({});
  schema.columns.push_back({Column::Role::kTokens,
                            form.bytes_column ? Column::Encoding::kBytes : Column::Encoding::kArray, IntegerType::kU16,
                            0});
  if (form.labels) schema.columns.push_back({Column::Role::kLabels, Column::Encoding::kArray, IntegerType::kI32, 0});
  return schema;
}

StreamFiles write_stream(const TemporaryDirectory& directory, const std::string& name,
                         const std::vector<ShardLengths>& shards, const Form& form) {
  StreamFiles files;
  files.name = name;
  files.directory = directory / name;
  files.schemas = {schema_of(form)};
  for (uint32_t i = 0; i < shards.size(); ++i) {
    const Bytes raw = raw_shard(name, i, shards[i], form);
    const std::string basename = "shard." + std::to_string(i) + ".mds";
    StreamFiles::Entry entry{basename, {}, 0, static_cast<uint32_t>(shards[i].size()), raw.size(), 0, std::nullopt};
    if (form.compressed) {
      const Bytes zip = compress(raw, form.frame_bytes);
      entry.zip_basename = basename + ".zstd";
      entry.zip_bytes = zip.size();
      write_file(files.directory + "/" + entry.zip_basename, zip);
    } else {
      write_file(files.directory + "/" + basename, raw);
    }
    files.shards.push_back(entry);
  }
  return files;
}

}  // namespace stoker::testing_files
