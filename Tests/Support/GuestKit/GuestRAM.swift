// SPDX-License-Identifier: Apache-2.0

internal import CLinux
public import DMA
internal import Glibc
public import Platform
public import SystemPackage

/// The guest's memory: a mapped memfd with a simple allocator. A controller or a server maps it
/// through ``descriptor()``.
///
/// Each allocation lies between canaries, so ``damagedCanaries()`` finds writes outside of
/// allocations. An access of a test outside the memory traps.
public final class GuestRAM {
    /// The address of the first byte.
    public let base: GuestAddress
    public let size: Int
    private let file: OwnedDescriptor
    private let mapping: Mapping
    private var next: Int
    private var gaps: [Range<Int>] = []

    private static let canary: UInt8 = 0xc5
    private static let canaryBytes = 64

    /// Memory of `size` bytes at `base`, by default above 4 GiB.
    public init(size: Int = 16 << 20, base: UInt64 = 0x1_4000_0000) throws {
        file = OwnedDescriptor(
            owning: try systemCall { clinux_memfd_create("guest", UInt32(CLINUX_MFD_CLOEXEC)) })
        let number = file.rawValue
        _ = try systemCall { ftruncate(number, size) }
        mapping = try Mapping(file, offset: 0, count: UInt64(size), writable: true)
        self.base = GuestAddress(base)
        self.size = size
        next = 0
    }

    /// A descriptor of the memory, to be mapped.
    public func descriptor() throws(Errno) -> OwnedDescriptor { try file.duplicate() }

    /// The addresses of the memory.
    public var range: Range<UInt64> { base.rawValue..<base.rawValue + UInt64(size) }

    // MARK: - Allocation

    /// Allocates zeroed memory. It is never freed.
    ///
    /// - Parameters:
    ///   - alignment: a power of two.
    ///   - boundary: the allocation does not cross a multiple of it, as the specification requires
    ///     of most structures (xHCI table 6-1).
    public func allocate(_ count: Int, alignment: Int = 64, boundary: Int? = nil) -> GuestAddress {
        let start = next
        var begin = next + Self.canaryBytes
        begin = (begin + alignment - 1) & ~(alignment - 1)
        if let boundary, count > 0, begin / boundary != (begin + count - 1) / boundary {
            begin = (begin + boundary - 1) / boundary * boundary
        }
        next = begin + count
        precondition(
            next + Self.canaryBytes <= size, "guest memory of \(size) bytes is used up by \(count)")
        fillCanary(start..<begin)
        gaps.append(start..<begin)
        fillCanary(next..<next + Self.canaryBytes)
        return base + begin
    }

    /// The addresses of overwritten canary bytes.
    public func damagedCanaries() -> [GuestAddress] {
        var damaged: [GuestAddress] = []
        for gap in gaps + [next..<min(next + Self.canaryBytes, size)] {
            for offset in gap where mapping.bytes[offset] != Self.canary {
                damaged.append(base + offset)
            }
        }
        return damaged
    }

    private func fillCanary(_ range: Range<Int>) {
        for offset in range { mapping.bytes[offset] = Self.canary }
    }

    // MARK: - Access

    private func offset(_ address: GuestAddress, count: Int) -> Int {
        precondition(
            address >= base
                && address.rawValue - base.rawValue + UInt64(count) <= UInt64(size),
            "the guest has no memory at \(address) for \(count) bytes")
        return Int(address.rawValue - base.rawValue)
    }

    /// The value at an address, least significant byte first.
    public func load<Value: BitwiseCopyable>(
        _ type: Value.Type = Value.self, at address: GuestAddress
    ) -> Value {
        mapping.bytes.loadUnaligned(
            fromByteOffset: offset(address, count: MemoryLayout<Value>.size), as: Value.self)
    }

    public func store<Value: BitwiseCopyable>(_ value: Value, at address: GuestAddress) {
        mapping.bytes.storeBytes(
            of: value, toByteOffset: offset(address, count: MemoryLayout<Value>.size),
            as: Value.self)
    }

    public func bytes(at address: GuestAddress, count: Int) -> [UInt8] {
        guard count > 0 else { return [] }
        let start = offset(address, count: count)
        return [UInt8](mapping.bytes[start..<start + count])
    }

    /// The memory itself, valid as long as this object.
    public func window(at address: GuestAddress, count: Int) -> UnsafeMutableRawBufferPointer {
        let start = offset(address, count: count)
        return UnsafeMutableRawBufferPointer(rebasing: mapping.bytes[start..<start + count])
    }

    public func write(_ bytes: [UInt8], at address: GuestAddress) {
        guard !bytes.isEmpty else { return }
        let start = offset(address, count: bytes.count)
        mapping.bytes[start..<start + bytes.count].copyBytes(from: bytes)
    }

    public func fill(_ byte: UInt8, at address: GuestAddress, count: Int) {
        guard count > 0 else { return }
        let start = offset(address, count: count)
        for offset in start..<start + count { mapping.bytes[offset] = byte }
    }
}
