/* The fixed records of file format 2, for programs in C. What the fields mean is in FORMAT.md.
 *
 * All integers are little-endian: on a big-endian machine swap them after reading. A reference is
 * the page number in its low and the checksum in its high 32 bits; a stamp the txid in its low 48
 * bits and a nonce in the others. tests/engine/test_format_header.py holds this file to format.py.
 */

#ifndef LIMPET_FORMAT_H
#define LIMPET_FORMAT_H

#include <stdint.h>

#define LIMPET_FORMAT_VERSION 2
#define LIMPET_MIN_PAGE_SIZE 512
#define LIMPET_MAX_PAGE_SIZE 65536
#define LIMPET_MAX_LEVEL 40

#define LIMPET_CRC32C 1
#define LIMPET_CRC32 2

#define LIMPET_HOLDER_PGNO 3
#define LIMPET_FIRST_NODE_PGNO 4

#define LIMPET_FLAG_CLEAN 1

#define LIMPET_LEAF 1
#define LIMPET_BRANCH 2
#define LIMPET_OVERFLOW 3
#define LIMPET_FREE_SPACE 4
#define LIMPET_LOG 5

#define LIMPET_CATALOGUE_TREE 0
#define LIMPET_FREE_SPACE_TREE 1
#define LIMPET_FIRST_TABLE_TREE 2

#pragma pack(push, 1)

struct limpet_header {
    uint8_t magic[8]; /* 89 'L' 'M' 'P' 'T' 0d 0a 1a */
    uint32_t format_version;
    uint32_t page_size;
    uint32_t checksum_kind;
    uint32_t features_incompatible;
    uint32_t features_read_only;
    uint8_t file_id[16];
    uint64_t created_us;
    uint32_t checksum;
};

struct limpet_meta {
    uint32_t checksum;
    uint32_t flags;
    uint64_t stamp;
    uint64_t catalogue_root;
    uint64_t free_space_root;
    uint64_t high_water;
    uint64_t free_count;
    uint32_t table_count;
    uint32_t next_tree_id;
    uint64_t commit_us;
    uint32_t log_start;
    uint32_t log_size;
    uint32_t slot;
    uint8_t zero[20];
};

struct limpet_page {
    uint32_t checksum;
    uint8_t kind;
    uint8_t level;
    uint16_t count;
    uint32_t pgno;
    uint32_t tree_id;
    uint64_t stamp;
};

struct limpet_log_record { /* behind the page header; groups follow */
    uint64_t epoch;
    uint64_t durable_txid;
    uint64_t commit_us;
    uint32_t previous;
    uint32_t size;
};

struct limpet_log_group { /* changes follow */
    uint32_t tree_id;
    uint32_t change_count;
};

struct limpet_log_change { /* key and value follow */
    uint16_t key_size;
    uint32_t value_size; /* 0xffffffff: deleted */
};

struct limpet_overflow_record {
    uint32_t value_size;
    uint64_t reference;
};

struct limpet_catalogue_entry { /* one byte for each codec of the key follows */
    uint64_t root;
    uint64_t entry_count;
    uint32_t tree_id;
    uint8_t value_codec;
    uint8_t key_shape;
};

#pragma pack(pop)

#endif
