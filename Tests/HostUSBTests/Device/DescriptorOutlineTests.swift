// SPDX-License-Identifier: Apache-2.0

import Testing
import USB

@testable import HostUSB

/// Descriptors of devices, well-formed and malformed.
struct DescriptorOutlineTests {
    private static let device: [UInt8] = [
        18, 1, 0, 2, 0, 0, 0, 64, 0xf4, 0x46, 1, 0, 0, 1, 1, 2, 3, 1,
    ]

    private static func configuration(_ value: UInt8, total: UInt16 = 9) -> [UInt8] {
        [9, 2, UInt8(truncatingIfNeeded: total), UInt8(total >> 8), 1, value, 0, 0x80, 50]
    }

    private static func interface(_ number: UInt8, _ setting: UInt8 = 0, code: UInt8 = 8) -> [UInt8]
    { [9, 4, number, setting, 2, code, 6, 0x50, 0] }

    private static let endpoint: [UInt8] = [7, 5, 0x81, 2, 0, 2, 0]

    private func numbers(_ bytes: [UInt8]) -> [[UInt8]] {
        ConfigurationOutline.all(in: bytes).map { $0.interfaces.map(\.number) }
    }

    @Test func `interfaces are found in each configuration`() {
        let found = ConfigurationOutline.all(
            in: Self.device + Self.configuration(1) + Self.interface(0) + Self.endpoint
                + Self.interface(0, 1) + Self.interface(1, code: 3) + Self.configuration(2)
                + Self.interface(5))
        #expect(found.map(\.value) == [1, 2])
        #expect(found.first?.interfaces.map(\.number) == [0, 1])
        #expect(found.first?.interfaces.map(\.usbClass.code) == [8, 3])
        #expect(found.last?.interfaces.map(\.number) == [5])
    }

    @Test func `without a configuration there are no interfaces`() {
        #expect(numbers([]) == [])
        #expect(numbers(Self.device) == [])
        #expect(numbers(Self.interface(0)) == [])
        #expect(numbers(Self.configuration(1)) == [[]])
    }

    @Test(arguments: [0, 1] as [UInt8])
    func `a length below 2 ends the iteration`(length: UInt8) {
        #expect(
            numbers(Self.configuration(1) + Self.interface(0) + [length, 4] + Self.interface(1))
                == [[0]])
    }

    @Test func `a descriptor beyond the end of the bytes is not read`() {
        #expect(numbers(Self.configuration(1) + [255, 4, 1, 0, 0, 8, 6, 0x50, 0]) == [[]])
        for length in 0..<9 {
            #expect(numbers(Self.configuration(1) + Self.interface(0).prefix(length)) == [[]])
        }
    }

    @Test func `descriptors that are too short for their type are skipped`() {
        #expect(
            numbers(
                [3, 2, 1] + Self.configuration(1) + [4, 4, 7, 0] + [2, 5] + Self.interface(3))
                == [[3]])
    }

    @Test func `wTotalLength is ignored`() {
        for total in [0, 9, 0xffff] as [UInt16] {
            #expect(numbers(Self.configuration(1, total: total) + Self.interface(0)) == [[0]])
        }
    }

    @Test func `interfaces and configurations have a bound`() {
        let interfaces = (0...255 as ClosedRange<UInt8>).flatMap { Self.interface($0) }
        #expect(
            ConfigurationOutline.all(in: Self.configuration(1) + interfaces).first?.interfaces.count
                == ConfigurationOutline.mostInterfaces)
        let configurations = (0...255 as ClosedRange<UInt8>).flatMap { Self.configuration($0) }
        #expect(
            ConfigurationOutline.all(in: configurations).count
                == ConfigurationOutline.mostConfigurations)
    }

    @Test(arguments: 0..<64 as Range<UInt64>)
    func `no bytes trap`(seed: UInt64) {
        // xorshift; small values are more often plausible lengths and types.
        var state = seed &* 0x9e37_79b9_7f4a_7c15 &+ 1
        let bytes = (0..<2048).map { _ in
            state ^= state << 13
            state ^= state >> 7
            state ^= state << 17
            return UInt8(truncatingIfNeeded: state >> 32) & (seed & 1 == 0 ? 0xff : 0x0f)
        }
        for configuration in ConfigurationOutline.all(in: Self.device + bytes) {
            #expect(configuration.interfaces.count <= ConfigurationOutline.mostInterfaces)
        }
    }

    @Test func `the classes are the device's own or those of its interfaces`() {
        let bytes =
            Self.device + Self.configuration(1) + Self.interface(0, code: 1)
            + Self.interface(1, code: 1) + Self.interface(2, code: 3)
        #expect(ClassNames.all(device: 0, descriptors: bytes) == ["audio", "human interface"])
        #expect(ClassNames.all(device: 9, descriptors: bytes) == ["hub"])
        #expect(ClassNames.all(device: 0x42, descriptors: []) == ["class 42"])
    }
}
