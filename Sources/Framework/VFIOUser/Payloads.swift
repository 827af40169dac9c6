// SPDX-License-Identifier: Apache-2.0

internal import Platform

// Offsets count from the end of the header, as in the protocol document. The field `argsz` holds
// the length of the reply that the client expects. The field is ignored: clients
// disagree whether it includes the header, and no reply could be shorter.

/// The payload of DMA_MAP: 32 bytes.
struct DMAMapRequest {
    let flags: UInt32
    let offset: UInt64
    let address: UInt64
    let count: UInt64

    /// - Returns: `nil` if the payload is too short.
    init?(_ payload: Span<UInt8>) {
        guard payload.count >= 32 else { return nil }
        flags = payload.littleEndian(at: 4)
        offset = payload.littleEndian(at: 8)
        address = payload.littleEndian(at: 16)
        count = payload.littleEndian(at: 24)
    }
}

/// The payload of DMA_UNMAP and of its reply: 24 bytes.
struct DMAUnmapRequest {
    static let size = 24

    struct Flags: OptionSet {
        let rawValue: UInt32

        /// Bit 0: report the pages that were written.
        static let getDirtyBitmap = Flags(rawValue: 1 << 0)
        /// Bit 1: unmap all memory; address and count are zero.
        static let all = Flags(rawValue: 1 << 1)
    }

    let flags: Flags
    let address: UInt64
    let count: UInt64

    /// - Returns: `nil` if the payload is too short.
    init?(_ payload: Span<UInt8>) {
        guard payload.count >= Self.size else { return nil }
        flags = Flags(rawValue: payload.littleEndian(at: 4))
        address = payload.littleEndian(at: 8)
        count = payload.littleEndian(at: 16)
    }
}

/// The payload of DEVICE_SET_IRQS: 20 bytes, and a byte for each vector with ``Flags/dataBool``.
struct SetIRQsRequest {
    static let size = 20

    struct Flags: OptionSet {
        let rawValue: UInt32

        static let dataNone = Flags(rawValue: 1 << 0)
        static let dataBool = Flags(rawValue: 1 << 1)
        static let dataEventFD = Flags(rawValue: 1 << 2)
        static let actionMask = Flags(rawValue: 1 << 3)
        static let actionUnmask = Flags(rawValue: 1 << 4)
        static let actionTrigger = Flags(rawValue: 1 << 5)

        static let anyData: Flags = [.dataNone, .dataBool, .dataEventFD]
        static let anyAction: Flags = [.actionMask, .actionUnmask, .actionTrigger]
    }

    let flags: Flags
    /// The index of the interrupt type.
    let index: Int
    /// The first vector.
    let start: Int
    /// The number of vectors.
    let count: Int

    /// - Returns: `nil` if the payload is too short.
    init?(_ payload: Span<UInt8>) {
        guard payload.count >= Self.size else { return nil }
        flags = Flags(rawValue: payload.littleEndian(at: 4))
        index = Int(payload.littleEndian(UInt32.self, at: 8))
        start = Int(payload.littleEndian(UInt32.self, at: 12))
        count = Int(payload.littleEndian(UInt32.self, at: 16))
    }
}

/// The fields of REGION_READ, REGION_WRITE and an element of REGION_WRITE_MULTI: 16 bytes, before
/// the data.
struct RegionAccess {
    static let size = 16

    /// The offset in the region.
    let offset: UInt64
    /// The index of the region.
    let region: UInt32
    /// The length of the data in bytes.
    let count: UInt32

    /// Reads the fields at an offset of the payload, which has all of them.
    init(_ payload: Span<UInt8>, at start: Int = 0) {
        offset = payload.littleEndian(at: start)
        region = payload.littleEndian(at: start + 8)
        count = payload.littleEndian(at: start + 12)
    }
}

/// The layout of REGION_WRITE_MULTI: a count, and elements with room for the longest data each.
enum RegionWriteMulti {
    static let headerSize = 8
    static let elementSize = 24
    static let longestData = 8
}
