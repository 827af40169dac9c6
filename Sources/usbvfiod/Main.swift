// SPDX-License-Identifier: Apache-2.0

@main
struct Usbvfiod {
    static func main() {}
}
