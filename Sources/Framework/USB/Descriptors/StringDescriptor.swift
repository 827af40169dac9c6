// SPDX-License-Identifier: Apache-2.0

/// String descriptors (USB 2.0, 9.6.7).
enum StringDescriptor {
    /// String 0, the list of languages: English (United States) only.
    static let languages = DescriptorBuilder.bytes(of: .string) { $0.append(UInt16(0x0409)) }

    /// A text in UTF-16, cut between characters to the 126 units that a descriptor holds.
    static func bytes(_ text: String) -> [UInt8] {
        DescriptorBuilder.bytes(of: .string) { descriptor in
            for character in text {
                let units = String(character).utf16
                guard descriptor.count + 2 * units.count <= 254 else { return }
                for unit in units { descriptor.append(unit) }
            }
        }
    }
}
