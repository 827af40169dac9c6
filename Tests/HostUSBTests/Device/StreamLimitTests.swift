// SPDX-License-Identifier: Apache-2.0

import Testing
import USB

@testable import HostUSB

/// The streams that a guest is offered.
struct StreamLimitTests {
    /// The configuration of a UAS disk: setting 0 without streams, setting 1 with 2^`exponent`.
    static func disk(exponent: UInt8 = 4, configuration: UInt8 = 1) -> [UInt8] {
        let parts: [[UInt8]] = [
            [9, 2, 85, 0, 1, configuration, 0, 0xc0, 0],
            [9, 4, 0, 0, 2, 8, 6, 0x50, 0],
            [7, 5, 0x81, 2, 0, 4, 0], [6, 0x30, 15, 0, 0, 0],
            [7, 5, 0x02, 2, 0, 4, 0], [6, 0x30, 15, 0, 0, 0],
            [9, 4, 0, 1, 3, 8, 6, 0x62, 0],
            [7, 5, 0x81, 2, 0, 4, 0], [6, 0x30, 15, exponent, 0, 0], [4, 0x24, 3, 0],
            [7, 5, 0x02, 2, 0, 4, 0], [6, 0x30, 15, exponent, 0, 0], [4, 0x24, 4, 0],
            // In companions of interrupt endpoints the same bits have another meaning.
            [7, 5, 0x83, 3, 0, 4, 8], [6, 0x30, 0, 3, 0, 4],
        ]
        return parts.flatMap(\.self)
    }

    private func seen(_ bytes: [UInt8], _ limit: StreamLimit) -> [UInt8] {
        var bytes = bytes
        for (offset, value) in limit.changes(to: bytes) { bytes[offset] = value }
        return bytes
    }

    @Test func `the endpoint with the most streams is found in its configuration`() {
        let bytes = Self.disk(configuration: 2) + Self.disk(exponent: 5)
        #expect(
            StreamEndpoint.greatest(in: bytes, configuration: 1)
                == StreamEndpoint(
                    interface: 0, setting: 1, address: EndpointAddress(1, .in), exponent: 5))
        #expect(StreamEndpoint.greatest(in: bytes, configuration: 2)?.exponent == 4)
        #expect(StreamEndpoint.greatest(in: bytes, configuration: 3) == nil)
        #expect(StreamEndpoint.greatest(in: Self.disk(exponent: 0), configuration: 1) == nil)
        #expect(
            StreamEndpoint.greatest(in: Self.disk(exponent: 31), configuration: 1)?.exponent == 16)
    }

    @Test(arguments: [(4, 16), (7, 128), (8, 255), (16, 255)] as [(UInt8, Int)])
    func `as many streams are tried as the guest's controller can use`(exponent: UInt8, count: Int)
    {
        let endpoint = StreamEndpoint(
            interface: 0, setting: 0, address: EndpointAddress(1, .out), exponent: exponent)
        #expect(endpoint.offered == count)
    }

    @Test(
        arguments: [
            (16, 16, nil), (255, 255, nil), (15, 16, 3), (8, 16, 3), (7, 16, 2), (254, 255, 7),
            (2, 16, 1), (1, 16, 0), (0, 16, 0), (-12, 16, 0),
        ] as [(Int, Int, UInt8?)])
    func `a limit is the power of two that the host has`(
        granted: Int, offered: Int, exponent: UInt8?
    ) {
        #expect(StreamLimit(granted: granted, of: offered)?.exponent == exponent)
    }

    @Test func `a smaller number is offered, and nothing else changes`() throws {
        let limit = try #require(StreamLimit(granted: 7, of: 16))
        #expect(seen(Self.disk(exponent: 4), limit) == Self.disk(exponent: 2))
        #expect(seen(Self.disk(exponent: 1), limit) == Self.disk(exponent: 1))
    }

    @Test func `without streams there is no alternate setting for UAS`() throws {
        let limit = try #require(StreamLimit(granted: 0, of: 16))
        var expected = Self.disk(exponent: 0)
        let setting = try #require(expected.firstRange(of: [8, 6, 0x62] as [UInt8]))
        expected[setting.lowerBound] = 0xff
        #expect(seen(Self.disk(), limit) == expected)
    }

    @Test func `the first bytes of descriptors are changed as in the whole`() throws {
        for granted in [0, 7] {
            let limit = try #require(StreamLimit(granted: granted, of: 16))
            let whole = Self.disk()
            for count in 0...whole.count {
                let part = Array(whole.prefix(count))
                let changed = seen(part, limit)
                #expect(changed.count == count)
                for (index, byte) in changed.enumerated() where byte != part[index] {
                    #expect(byte == seen(whole, limit)[index])
                }
            }
            // A change does not depend on the bytes behind it.
            #expect(
                seen(Array(whole.dropLast(3)), limit) == Array(seen(whole, limit).dropLast(3)))
        }
    }

    @Test(
        arguments: [[], [0, 0], [1, 2], [9], [9, 2], [255, 4, 1], [2, 48, 6, 48, 0]] as [[UInt8]])
    func `malformed descriptors are not changed`(bytes: [UInt8]) throws {
        #expect(StreamEndpoint.greatest(in: bytes, configuration: 1) == nil)
        let limit = try #require(StreamLimit(granted: 0, of: 16))
        #expect(seen(bytes, limit) == bytes)
    }
}
