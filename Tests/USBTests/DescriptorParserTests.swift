// SPDX-License-Identifier: Apache-2.0

import Testing
import USB

/// Parsing of descriptors that a device has sent, which may be hostile.
@Suite struct DescriptorParserTests {
    private static let device: [UInt8] = [
        18, 1, 0, 2, 0, 0, 0, 64, 0xf4, 0x46, 1, 0, 0, 1, 1, 2, 3, 1,
    ]

    private static func configuration(_ value: UInt8, total: UInt16 = 9) -> [UInt8] {
        [9, 2, UInt8(truncatingIfNeeded: total), UInt8(total >> 8), 1, value, 0, 0x80, 50]
    }

    private static func interface(_ number: UInt8, _ setting: UInt8 = 0) -> [UInt8] {
        [9, 4, number, setting, 2, 8, 6, 0x50, 0]
    }

    private static let endpoint: [UInt8] = [7, 5, 0x81, 2, 0, 2, 0]

    private static func companion(streams: UInt8) -> [UInt8] { [6, 48, 15, streams, 0, 0] }

    private func numbers(_ bytes: [UInt8]) -> [[UInt8]] {
        ConfigurationDescriptor.all(in: bytes).map(\.interfaceNumbers)
    }

    // MARK: - Sequence

    @Test func `descriptors have their offset, type and bytes`() {
        let found = Array(DescriptorSequence(Self.configuration(1) + Self.endpoint))
        #expect(found.map(\.offset) == [0, 9])
        #expect(found.map(\.type) == [.configuration, .endpoint])
        #expect(found.last?.bytes == Self.endpoint)
        #expect(found.last?[EndpointDescriptor.Field.address] == 0x81)
        #expect(found.last?[7] == nil)
        #expect(found.last?[-1] == nil)
    }

    @Test(arguments: [[], [9], [0, 0], [1, 2], [0, 4, 1]] as [[UInt8]])
    func `a length below 2 ends the sequence`(bytes: [UInt8]) {
        #expect(Array(DescriptorSequence(bytes, includesTruncated: true)).isEmpty)
        #expect(Array(DescriptorSequence(Self.endpoint + bytes)).count == 1)
    }

    @Test func `a truncated descriptor is included only on request`() {
        let bytes = Self.endpoint + Self.interface(3).prefix(4)
        #expect(Array(DescriptorSequence(bytes)).map(\.type) == [.endpoint])
        let all = Array(DescriptorSequence(bytes, includesTruncated: true))
        #expect(all.map(\.type) == [.endpoint, .interface])
        #expect(all.last?.bytes == [9, 4, 3, 0])
        #expect(all.last?[InterfaceDescriptor.Field.endpointCount] == nil)
    }

    // MARK: - Configurations

    @Test(arguments: [USBSpeed.high, .superSpeed])
    func `parsing inverts building`(speed: USBSpeed) throws {
        let description = exampleDescription(speed: speed)
        var expected = description.configurations
        if !speed.isSuperSpeed {
            for interface in expected[0].interfaces.indices {
                for endpoint in expected[0].interfaces[interface].endpoints.indices {
                    expected[0].interfaces[interface].endpoints[endpoint].companion = .init()
                }
            }
        } else {
            // 100 mA, in units of 8 mA.
            expected[0].milliamperes = 104
        }
        let bytes = try #require(description.descriptor(.configuration, index: 0))
        #expect(
            ConfigurationDescriptor.all(in: bytes, superSpeed: speed.isSuperSpeed) == expected)
    }

    @Test
    func
        `each alternate setting is an interface descriptor, interfaceNumbers has each number once`()
    {
        let found = ConfigurationDescriptor.all(
            in: Self.device + Self.configuration(1) + Self.interface(0) + Self.endpoint
                + Self.interface(0, 1) + Self.interface(1) + Self.configuration(2)
                + Self.interface(5))
        #expect(found.map(\.value) == [1, 2])
        #expect(found.first?.interfaces.map(\.alternateSetting) == [0, 1, 0])
        #expect(found.map(\.interfaceNumbers) == [[0, 1], [5]])
        #expect(found.first?.interfaces.map(\.endpoints.count) == [1, 0, 0])
    }

    @Test func `a configuration of value 0 is parsed`() {
        #expect(ConfigurationDescriptor.all(in: Self.configuration(0)).map(\.value) == [0])
    }

    @Test func `the first companion behind an endpoint counts`() {
        let bytes =
            Self.configuration(1) + Self.interface(0) + Self.companion(streams: 9) + Self.endpoint
            + [4, 0x24, 3, 0] + Self.companion(streams: 31) + Self.companion(streams: 1)
            + Self.endpoint
        let endpoints = ConfigurationDescriptor.all(in: bytes)[0].interfaces[0].endpoints
        #expect(endpoints.map(\.companion.maxStreams) == [31, 0])
        #expect(endpoints.map(\.companion.burst) == [16, 1])
        #expect(endpoints.map(\.classDescriptors) == [[4, 0x24, 3, 0], []])
    }

    @Test func `a burst that is too long is 16 packets`() {
        let bytes =
            Self.configuration(1) + Self.interface(0) + Self.endpoint + [6, 48, 255, 0, 0, 0]
        #expect(
            ConfigurationDescriptor.all(in: bytes)[0].interfaces[0].endpoints[0].companion.burst
                == 16)
    }

    @Test
    func `without a configuration there are no interfaces, without an interface no endpoints`() {
        #expect(numbers([]) == [])
        #expect(numbers(Self.device) == [])
        #expect(numbers(Self.interface(0)) == [])
        #expect(numbers(Self.configuration(1) + Self.endpoint) == [[]])
        let second = Self.configuration(1) + Self.interface(0) + Self.configuration(2)
        #expect(
            ConfigurationDescriptor.all(in: second + Self.endpoint + Self.interface(1))
                .flatMap(\.interfaces).allSatisfy { $0.endpoints.isEmpty })
    }

    // MARK: - Hostile bytes

    @Test func `descriptors that are too short for their type are skipped`() {
        let short: [[UInt8]] = [
            [3, 2, 1], [8, 2, 0, 0, 0, 7, 0, 0], [4, 4, 7, 0], [2, 5], [2, 48],
        ]
        for descriptor in short {
            let bytes = Self.configuration(1) + descriptor + Self.interface(3)
            #expect(numbers(bytes) == [[3]])
        }
    }

    @Test func `total length and counts are not trusted`() {
        for total in [0, 9, 0xffff] as [UInt16] {
            #expect(numbers(Self.configuration(1, total: total) + Self.interface(0)) == [[0]])
        }
    }

    @Test func `interfaces beyond the limit are left out with their endpoints`() {
        let interfaces = (0...255 as ClosedRange<UInt8>).flatMap {
            Self.interface($0) + Self.endpoint
        }
        let found = ConfigurationDescriptor.all(
            in: Self.configuration(1) + interfaces + Self.interface(0, 1) + Self.endpoint)
        #expect(found[0].interfaceNumbers.count == USBLimits.interfaces)
        #expect(found[0].interfaces.count == USBLimits.interfaces + 1)
        #expect(found[0].interfaces.allSatisfy { $0.endpoints.count == 1 })
    }

    @Test func `configurations beyond the limit are left out`() {
        let configurations = (0...255 as ClosedRange<UInt8>).flatMap { Self.configuration($0) }
        let found = ConfigurationDescriptor.all(in: configurations + Self.interface(0))
        #expect(found.count == USBLimits.configurations)
        #expect(found.allSatisfy { $0.interfaces.isEmpty })
    }

    @Test(arguments: 0..<64 as Range<UInt64>)
    func `no bytes trap, and a prefix gives a prefix`(seed: UInt64) {
        var state = seed &* 0x9e37_79b9_7f4a_7c15 &+ 1
        let noise = (0..<2048).map { _ in
            state ^= state << 13
            state ^= state >> 7
            state ^= state << 17
            return UInt8(truncatingIfNeeded: state >> 32) & (seed & 1 == 0 ? 0xff : 0x0f)
        }
        let bytes = Self.device + Self.configuration(1) + noise
        let whole = ConfigurationDescriptor.all(in: bytes)
        let part = ConfigurationDescriptor.all(in: Array(bytes.prefix(bytes.count / 2)))
        #expect(whole.allSatisfy { $0.interfaceNumbers.count <= USBLimits.interfaces })
        #expect(part.count <= whole.count)
        for (short, long) in zip(part, whole) {
            #expect(short.value == long.value)
            #expect(long.interfaceNumbers.starts(with: short.interfaceNumbers))
        }
    }
}
