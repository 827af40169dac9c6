// SPDX-License-Identifier: Apache-2.0

import Testing

@testable import HostUSB

/// The class names in the list of devices.
struct ClassNamesTests {
    private static let configuration: [UInt8] = [9, 2, 9, 0, 1, 1, 0, 0x80, 50]

    private static func interface(_ number: UInt8, _ setting: UInt8 = 0, code: UInt8) -> [UInt8] {
        [9, 4, number, setting, 0, code, 6, 0x50, 0]
    }

    @Test func `the classes are those of the interfaces, each once`() {
        let bytes =
            Self.configuration + Self.interface(0, code: 1) + Self.interface(1, code: 1)
            + Self.interface(2, code: 3)
        #expect(ClassNames.all(device: 0, descriptors: bytes) == ["audio", "human interface"])
    }

    @Test func `of alternate settings the first one counts`() {
        let bytes = Self.configuration + Self.interface(0, code: 8) + Self.interface(0, 1, code: 3)
        #expect(ClassNames.all(device: 0xef, descriptors: bytes) == ["mass storage"])
    }

    @Test func `a device may have a class of its own`() {
        #expect(ClassNames.all(device: 9, descriptors: Self.configuration) == ["hub"])
        #expect(ClassNames.all(device: 0x42, descriptors: []) == ["class 42"])
    }
}
